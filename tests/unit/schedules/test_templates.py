"""Templates: the values of placeholders, the refused ones, and that only string values change."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xalen_batch.errors import InvalidRequest
from xalen_batch.schedules import templates
from xalen_batch.schedules.templates import Moment, fill, render

RUN = "run_0192f0c1d2e3740a8b1c2d3e4f506172"
BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: str = "Europe/Berlin") -> Moment:
    """The moment of an ISO time in UTC, on a zone's clock."""
    return Moment(datetime.fromisoformat(text).replace(tzinfo=UTC), ZoneInfo(zone), RUN)


# 02:30 in Berlin on 1 March.
NIGHT = at("2026-03-01T01:30")


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{{scheduled_date}}", "2026-03-01"),
        ("{{scheduled_date-1d}}", "2026-02-28"),
        ("{{scheduled_date+2w}}", "2026-03-15"),
        ("{{scheduled_date:%d.%m.%Y}}", "01.03.2026"),
        ("{{scheduled_date-1d:%Y/%m}}", "2026/02"),
        ("{{scheduled_date:week %V of %G, day %j, 100%%}}", "week 09 of 2026, day 060, 100%"),
        ("{{scheduled_time}}", "2026-03-01T02:30:00+01:00"),
        ("{{scheduled_time-6h:%H:%M}}", "20:30"),
        ("{{scheduled_time-1d:%A %I:%M %p %Z}}", "Saturday 02:30 AM CET"),
        ("{{run_id}}", RUN),
        ("{{  scheduled_date  -  1d : %d.%m. }}", "28.02."),
        ("Report of {{scheduled_date}}, run {{run_id}}.", f"Report of 2026-03-01, run {RUN}."),
        # Not one of our placeholders, or no placeholder.
        (
            "{{customer}} {{date}} {{ user.name }} {{runner}} {{#if x}}",
            "{{customer}} {{date}} {{ user.name }} {{runner}} {{#if x}}",
        ),
        (
            "{scheduled_date} scheduled_date}} {{ {scheduled_date}}",
            "{scheduled_date} scheduled_date}} {{ {scheduled_date}}",
        ),
        # The innermost braces are a placeholder's.
        ("{{{scheduled_date}}}", "{2026-03-01}"),
        ("{{{{run_id}}}}", "{{" + RUN + "}}"),
    ],
)
def test_a_placeholder_stands_for_the_instant_of_the_run(text: str, filled: str) -> None:
    assert fill(text, NIGHT) == filled


def test_what_was_put_in_is_not_looked_at_again() -> None:
    moment = Moment(NIGHT.scheduled_for, BERLIN, "{{scheduled_date}}")
    assert fill("{{run_id}} {{{{run_id}}}}", moment) == "{{scheduled_date}} {{{{scheduled_date}}}}"
    assert fill("{{sched{{run_id}}uled_date}}", NIGHT) == "{{sched" + RUN + "uled_date}}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{{scheduled_dat}}", "{{scheduled_date}}"),
        ("{{Scheduled_Date}}", "{{scheduled_date}}"),
        ("{{schedule_date}}", "{{scheduled_date}}"),
        ("{{run_idd}}", "{{run_id}}"),
        ("{{scheduled_date.year}}", "{{scheduled_date-1d"),
        ("{{scheduled_date", "}}"),
        ("{{scheduled_date}", "}}"),
        ("{{scheduled_date {{run_id}}", "}}"),
        ("{{scheduled_date--1d}}", "{{scheduled_date-1d"),
        ("{{scheduled_date-1}}", "{{scheduled_date-1d"),
        ("{{scheduled_date-1m}}", "`d` or `w`"),
        ("{{scheduled_date-6h}}", "{{scheduled_time-6h:%Y-%m-%d}}"),
        ("{{scheduled_date-99999d}}", "{{scheduled_date-1d"),
        ("{{scheduled_date-²d}}", "{{scheduled_date-1d"),
        ("{{scheduled_date:%H}}", "%H"),
        ("{{scheduled_date:}}", "%Y"),
        ("{{scheduled_date:dd.MM.yyyy}}", "%Y"),
        ("{{scheduled_date:%-d}}", "%-"),
        ("{{scheduled_time:%s}}", "%s"),
        ("{{scheduled_time:%c}}", "%c"),
        ("{{scheduled_time:%Y%}}", "has a format with %,"),
        ("{{run_id:%Y}}", "{{run_id}}"),
        ("{{run_id-1d}}", "{{run_id}}"),
        ("{{scheduled_date" + " " * 300 + "}}", "}}"),
    ],
)
def test_what_begins_like_one_of_ours_and_is_none_is_refused_with_the_remedy(
    text: str, told: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        templates.check(f"before {text} after", param="source.prefix")
    assert (refused.value.code, refused.value.param) == ("invalid_placeholder", "source.prefix")
    assert told in refused.value.message
    assert len(refused.value.message) < 400
    with pytest.raises(InvalidRequest, match=r"placeholder|closed|offset|format"):
        fill(text, NIGHT)


@pytest.mark.parametrize(
    ("moment", "text", "filled"),
    [
        # 02:30 on the nights after the clocks went forward and back.
        (
            at("2026-03-30T00:30"),
            "{{scheduled_date-1d}} {{scheduled_time-1d}}",
            "2026-03-29 2026-03-29T03:30:00+02:00",
        ),
        (
            at("2026-10-26T01:30"),
            "{{scheduled_date-1d}} {{scheduled_time-1d}}",
            "2026-10-25 2026-10-25T02:30:00+02:00",
        ),
        # Hours are real time: a day of 23 hours lies between.
        (at("2026-03-30T00:30"), "{{scheduled_time-24h}}", "2026-03-29T01:30:00+01:00"),
        (
            at("2026-03-29T22:30"),
            "{{scheduled_time-24h}} {{scheduled_date-1d}}",
            "2026-03-28T23:30:00+01:00 2026-03-29",
        ),
        # The second 02:30 of a night keeps its offset.
        (
            at("2026-10-25T01:30"),
            "{{scheduled_time}} {{scheduled_time+0d}}",
            "2026-10-25T02:30:00+01:00 2026-10-25T02:30:00+01:00",
        ),
        (at("2026-10-25T01:30"), "{{scheduled_time-1h}}", "2026-10-25T02:30:00+02:00"),
        # Far from UTC, and by parts of an hour.
        (at("2026-01-31T11:00", "Pacific/Kiritimati"), "{{scheduled_date}}", "2026-02-01"),
        (
            at("2026-02-01T10:00", "Pacific/Niue"),
            "{{scheduled_date}} {{scheduled_date-1d}}",
            "2026-01-31 2026-01-30",
        ),
        (
            at("2026-02-28T18:20", "Asia/Kathmandu"),
            "{{scheduled_date}} {{scheduled_time}}",
            "2026-03-01 2026-03-01T00:05:00+05:45",
        ),
        (at("2028-03-01T00:00", "UTC"), "{{scheduled_date-1d}}", "2028-02-29"),
        # Midnight does not exist on the day that the clocks go forward in Cairo.
        (
            at("2026-04-23T22:00", "Africa/Cairo"),
            "{{scheduled_date}} {{scheduled_time}}",
            "2026-04-24 2026-04-24T01:00:00+03:00",
        ),
        (
            at("2026-04-24T21:00", "Africa/Cairo"),
            "{{scheduled_time-1d}}",
            "2026-04-24T01:00:00+03:00",
        ),
    ],
)
def test_dates_are_of_the_schedules_own_clock_also_when_it_is_changed(
    moment: Moment, text: str, filled: str
) -> None:
    assert fill(text, moment) == filled


@given(
    st.integers(946_684_800, 4_102_444_799).map(lambda second: datetime.fromtimestamp(second, UTC)),
    st.sampled_from(
        [
            "Pacific/Kiritimati",
            "Pacific/Niue",
            "Australia/Lord_Howe",
            "America/New_York",
            "Africa/Cairo",
            "Pacific/Apia",
        ]
    ),
    st.integers(-9999, 9999),
    st.sampled_from("dw"),
)
def test_a_date_moves_by_the_calendar(instant: datetime, zone: str, number: int, unit: str) -> None:
    moment = Moment(instant, ZoneInfo(zone), RUN)
    found = date.fromisoformat(fill(f"{{{{scheduled_date{number:+d}{unit}}}}}", moment))
    assert found - instant.astimezone(ZoneInfo(zone)).date() == number * timedelta(
        **{"d": {"days": 1}, "w": {"weeks": 1}}[unit]
    )
    shown = datetime.fromisoformat(fill(f"{{{{scheduled_time{number:+d}h}}}}", moment))
    assert shown == instant + timedelta(hours=number)


# Strings similar to placeholders, and parts of JSON around them.
BITS = [
    "{{",
    "}}",
    "{",
    "}",
    "scheduled_date",
    "run_id",
    "-1d",
    ":%Y",
    " ",
    '"',
    "\\",
    "\\u007b",
    "é",
    "💡",
    "\ud800",
    "%",
    "{{run_id}}",
]
TEXTS = st.one_of(
    st.lists(st.sampled_from([*BITS, "{{scheduled_date-1d:%d.%m.%Y}}"]), max_size=8).map("".join),
    st.text(max_size=20),
)
NUMBERS = st.sampled_from(
    ["1e400", "-0.10", "0.1", "1E+2", str(2**70), "-0", "3", "123456789012345678901234567890.10"]
)


class Verbatim(float):
    """A number as it was written."""

    def __new__(cls, digits: str) -> "Verbatim":
        made = super().__new__(cls, digits)
        made.digits = digits
        return made

    digits: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Verbatim) and other.digits == self.digits

    __hash__ = float.__hash__


def written(draw: Callable[..., Any], value: Any) -> str:
    """A value as JSON, escaped and indented in any way that is allowed."""
    blank = draw(st.sampled_from(["", " ", "\t", "  "]))
    if isinstance(value, str) and value.startswith("number:"):
        return value.removeprefix("number:")
    if isinstance(value, str):
        return '"' + "".join(escaped(draw, char) for char in value) + '"'
    if isinstance(value, dict):
        pairs = [
            f"{written(draw, key)}{blank}:{blank}{written(draw, item)}"
            for key, item in value.items()
        ]
        return "{" + blank + f"{blank},{blank}".join(pairs) + blank + "}"
    if isinstance(value, list):
        return "[" + blank + f"{blank},".join(written(draw, item) for item in value) + "]"
    return json.dumps(value)


def escaped(draw: Callable[..., Any], char: str) -> str:
    plain = (
        char
        if char not in '"\\' and char >= " " and not "\ud800" <= char <= "\udfff"
        else json.dumps(char)[1:-1]
    )
    return draw(st.sampled_from([plain, "".join(f"\\u{unit:04x}" for unit in units(char))]))


def units(char: str) -> list[int]:
    raw = char.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(raw[index : index + 2], "big") for index in range(0, len(raw), 2)]


@st.composite
def lines(draw: Callable[..., Any]) -> str:
    value = draw(
        st.recursive(
            st.one_of(TEXTS, NUMBERS.map("number:".__add__), st.none(), st.booleans()),
            lambda inner: st.one_of(
                st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)
            ),
            max_leaves=10,
        )
    )
    return written(draw, value)


def parsed(text: str) -> Any:
    """Parse objects as pairs and keep numbers as written, so that no change goes unnoticed."""
    return json.loads(
        text,
        parse_int=Verbatim,
        parse_float=Verbatim,
        object_pairs_hook=lambda pairs: ("object", pairs),
    )


def replaced(value: Any) -> Any:
    """The oracle: replace placeholders in string values, and keep keys and all else."""
    if isinstance(value, str):
        return fill(value, NIGHT)
    if isinstance(value, tuple):
        return ("object", [(key, replaced(item)) for key, item in value[1]])
    return [replaced(item) for item in value] if isinstance(value, list) else value


@given(lines())
@example('{"a":"\\u007b\\u007bscheduled_date}}","\\u007b{run_id}}" : "{\\u007Brun_id\\u007d}"}')
@example(
    '{"a": 1e400, "b": 0.10, "c": 1180591620717411303424, "d": "{{run_id}}", "d":'
    ' "{{scheduled_date}}"}'
)
@example(
    '["{{run_id}}\\ud800", "\\ud83d\\udca1{{run_id}}", "\\"{{run_id}}\\\\", "\\\\u007b{run_id}}"]'
)
def test_parsing_what_was_rendered_is_filling_what_was_parsed(line: str) -> None:
    raw = line.encode()
    try:
        expected = replaced(parsed(line))
    except InvalidRequest:
        with pytest.raises(InvalidRequest):
            list(render([raw], NIGHT))
        return
    (found,) = render([raw], NIGHT)
    assert parsed(found.decode()) == expected
    # Outside strings, no byte changes.
    outside = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
    assert outside.sub(b"", found) == outside.sub(b"", raw)


@given(
    st.lists(
        st.one_of(st.binary(max_size=30), TEXTS.map(lambda text: text.encode("utf-8", "replace"))),
        max_size=5,
    )
)
def test_what_is_no_json_raises_nothing_but_a_refusal(parts: list[bytes]) -> None:
    line = b'{"a": "' + b"".join(parts)
    with suppress(InvalidRequest):
        assert len(list(render([line], NIGHT))) == 1


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": "no placeholder", "b": 1.50}\r\n',
        b'{"{{scheduled_date}}": 1}\n',
        b'{"a": "{{other}} \\u007b\\u0041"}\n',
        b'{"a": "{{scheduled_date}}\n',
        b'{"a": "\x01{{scheduled_date}}"}\n',
        b'{"a": "\xff{{scheduled_date}}"}\n',
        b"{{scheduled_date}}\n",
        b"\n",
        b"",
    ],
)
def test_a_line_with_nothing_to_replace_passes_byte_for_byte(line: bytes) -> None:
    assert list(render([line], NIGHT)) == [line]


def test_a_hostile_line_takes_no_more_time_than_its_length() -> None:
    for line in (b'{"a": "' + b'\\"' * 1_000_000 + b"{{run_id}}", b'"' * 1_000_001 + b"{{"):
        assert list(render([line], NIGHT)) == [line]
    with pytest.raises(InvalidRequest, match="closed"):
        list(render([b'{"a": "' + b"{{run_" * 300_000 + b'"}'], NIGHT))

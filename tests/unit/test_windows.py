"""Windows: which texts are refused, and when execution windows open, also at clock changes."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from xalen_batch import windows
from xalen_batch.api import errors
from xalen_batch.errors import InvalidRequest
from xalen_batch.windows import WEEK, ExecutionWindow, refuse_if_never_open

NIGHT = ExecutionWindow(start="22:00", end="06:00", timezone="Europe/Berlin")
REQUEST = Request(
    {
        "type": "http",
        "method": "POST",
        "path": "/v1/batches",
        "headers": [],
        "query_string": b"",
        "server": ("x", 80),
    }
)


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin"))


def shown(window: ExecutionWindow, at: str, count: int = 1) -> list[str]:
    """The intervals from a local time on, each as `opens to closes` on the window's clock."""
    zone = ZoneInfo(window.timezone)
    found = islice(window.intervals(datetime.fromisoformat(at).replace(tzinfo=zone)), count)
    return [
        " to ".join(f"{end.astimezone(zone):%a %d %H:%M %z}" for end in interval)
        for interval in found
    ]


def refusal(**fields: Any) -> str:
    """The API's error for a window in a body."""
    try:
        ExecutionWindow.model_validate({"start": "22:00", "end": "06:00", **fields})
    except ValidationError as error:
        found = [
            {**problem, "loc": ("body", "execution_window", *problem["loc"])}
            for problem in error.errors()
        ]
        known = errors.translate(REQUEST, RequestValidationError(found))
        assert (known.status, known.code) == (400, "invalid_value")
        return known.message
    raise AssertionError("the window is valid")


@pytest.mark.parametrize(
    ("at", "is_open"),
    [
        ("21:59:59.999999", False),
        ("22:00", True),
        ("23:59:59", True),
        ("00:00", True),
        ("05:59:59.999999", True),
        ("06:00", False),
    ],
)
def test_it_is_open_from_its_start_until_just_before_its_end(at: str, is_open: bool) -> None:
    moment = berlin(f"2026-07-01 {at}")
    opens, closes = NIGHT.interval(moment)
    assert (opens <= moment < closes) == is_open
    assert moment < closes
    assert opens.tzinfo is UTC


def test_one_that_wraps_midnight_belongs_to_the_day_on_which_it_opens() -> None:
    friday = ExecutionWindow(start="22:00", end="06:00", days=["fri"], timezone="Europe/Berlin")
    assert shown(friday, "2026-07-04 05:00", 2) == [
        "Fri 03 22:00 +0200 to Sat 04 06:00 +0200",
        "Fri 10 22:00 +0200 to Sat 11 06:00 +0200",
    ]
    assert shown(friday, "2026-07-03 05:00") == ["Fri 03 22:00 +0200 to Sat 04 06:00 +0200"]


def test_one_within_a_day_and_one_until_midnight_close_on_the_day_they_open() -> None:
    noon = ExecutionWindow(
        start="12:00", end="13:30", days=["sun", "mon"], timezone="Asia/Kathmandu"
    )
    assert shown(noon, "2026-07-01 00:00", 2) == [
        "Sun 05 12:00 +0545 to Sun 05 13:30 +0545",
        "Mon 06 12:00 +0545 to Mon 06 13:30 +0545",
    ]
    evening = ExecutionWindow(start="18:00", end="00:00")
    assert shown(evening, "2026-07-01 00:00") == ["Wed 01 18:00 +0000 to Thu 02 00:00 +0000"]


@pytest.mark.parametrize(
    ("start", "end", "timezone", "at", "expected"),
    [
        # A night is an hour shorter in spring and an hour longer in autumn.
        (
            "22:00",
            "06:00",
            "Europe/Berlin",
            "2026-03-28 12:00",
            "Sat 28 22:00 +0100 to Sun 29 06:00 +0200",
        ),
        (
            "22:00",
            "06:00",
            "Europe/Berlin",
            "2026-10-24 12:00",
            "Sat 24 22:00 +0200 to Sun 25 06:00 +0100",
        ),
        # A skipped time counts as the end of the gap.
        (
            "02:30",
            "05:00",
            "Europe/Berlin",
            "2026-03-29 00:00",
            "Sun 29 03:00 +0200 to Sun 29 05:00 +0200",
        ),
        (
            "01:00",
            "02:30",
            "Europe/Berlin",
            "2026-03-29 00:00",
            "Sun 29 01:00 +0100 to Sun 29 03:00 +0200",
        ),
        (
            "00:00",
            "04:00",
            "Africa/Cairo",
            "2026-04-23 12:00",
            "Fri 24 01:00 +0300 to Fri 24 04:00 +0300",
        ),
        (
            "02:10",
            "03:00",
            "Australia/Lord_Howe",
            "2026-10-04 00:00",
            "Sun 04 02:30 +1100 to Sun 04 03:00 +1100",
        ),
        # A repeated time counts as its first occurrence.
        (
            "02:30",
            "05:00",
            "Europe/Berlin",
            "2026-10-25 00:00",
            "Sun 25 02:30 +0200 to Sun 25 05:00 +0100",
        ),
        (
            "01:00",
            "02:30",
            "Europe/Berlin",
            "2026-10-25 00:00",
            "Sun 25 01:00 +0200 to Sun 25 02:30 +0200",
        ),
        (
            "22:00",
            "23:30",
            "Africa/Cairo",
            "2026-10-29 12:00",
            "Thu 29 22:00 +0300 to Thu 29 23:30 +0300",
        ),
        # An interval that a clock change shortens to nothing is omitted.
        (
            "02:10",
            "02:50",
            "Europe/Berlin",
            "2026-03-29 00:00",
            "Mon 30 02:10 +0200 to Mon 30 02:50 +0200",
        ),
        (
            "08:00",
            "17:00",
            "Pacific/Apia",
            "2011-12-29 18:00",
            "Sat 31 08:00 +1400 to Sat 31 17:00 +1400",
        ),
    ],
)
def test_clock_changes_move_an_end_to_the_edge_of_the_change(
    start: str, end: str, timezone: str, at: str, expected: str
) -> None:
    assert shown(ExecutionWindow(start=start, end=end, timezone=timezone), at) == [expected]


def test_it_is_closed_again_in_the_repeated_hour_after_its_end() -> None:
    window = ExecutionWindow(start="01:00", end="02:30", timezone="Europe/Berlin")
    assert shown(window, "2026-10-25 02:29")[0].startswith("Sun 25")
    second = berlin("2026-10-25 02:15").replace(fold=1)
    assert window.interval(second)[0] == berlin("2026-10-26 01:00")


@pytest.mark.parametrize(
    ("date", "hours"),
    [("2026-07-01", 8), ("2026-03-28", 7), ("2026-10-24", 9)],
)
def test_an_interval_is_of_real_hours(date: str, hours: int) -> None:
    opens, closes = NIGHT.interval(berlin(f"{date} 12:00"))
    assert closes - opens == timedelta(hours=hours)


TIMES = st.tuples(st.integers(0, 23), st.sampled_from([0, 1, 15, 30, 59])).map(
    lambda time: f"{time[0]:02}:{time[1]:02}"
)
CHANGES = [
    ("Europe/Berlin", "2026-03-29T01:00Z"),
    ("Europe/Berlin", "2026-10-25T01:00Z"),
    ("America/Havana", "2026-11-01T05:00Z"),
    ("Australia/Lord_Howe", "2026-04-04T15:00Z"),
    ("Africa/Cairo", "2026-04-23T22:00Z"),
    ("Africa/Cairo", "2026-10-29T21:00Z"),
    ("Pacific/Apia", "2011-12-30T10:00Z"),
    ("Asia/Kathmandu", "2026-01-01T00:00Z"),
]


@st.composite
def windows_and_moments(draw: st.DrawFn) -> tuple[ExecutionWindow, list[datetime]]:
    """A window, and three ascending moments within some days of a clock change."""
    timezone, changed = draw(st.sampled_from(CHANGES))
    start, end = draw(TIMES), draw(TIMES)
    assume(start != end)
    days = draw(st.lists(st.sampled_from(WEEK), min_size=1))
    minutes = draw(st.lists(st.integers(-5_000, 5_000), min_size=3, max_size=3))
    moments = sorted(
        datetime.fromisoformat(changed) + timedelta(minutes=minute) for minute in minutes
    )
    return ExecutionWindow(start=start, end=end, days=days, timezone=timezone), moments


@given(windows_and_moments())
def test_intervals_are_the_same_wherever_one_looks_from_ascending_and_disjoint(
    case: tuple[ExecutionWindow, list[datetime]],
) -> None:
    window, (first, second, third) = case
    intervals = list(islice(window.intervals(first - timedelta(days=8)), 30))
    assert all(opens < closes for opens, closes in intervals)
    assert all(closes <= next_opens for (_, closes), (next_opens, _) in pairwise(intervals))
    for moment in (first, second, third):
        assert window.interval(moment) == next(
            interval for interval in intervals if moment < interval[1]
        )


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (list(WEEK), "22:00–06:00 Europe/Berlin"),
        (["mon", "tue", "wed", "thu", "fri"], "22:00–06:00 Europe/Berlin, mon–fri"),
        (["sun", "sat", "wed", "sun"], "22:00–06:00 Europe/Berlin, wed, sat–sun"),
        (["thu"], "22:00–06:00 Europe/Berlin, thu"),
    ],
)
def test_it_is_told_in_words_its_days_in_the_order_of_the_week(days: list[Any], words: str) -> None:
    assert NIGHT.model_validate({**NIGHT.model_dump(), "days": days}).describe() == words


def test_it_is_the_same_after_a_trip_through_json() -> None:
    window = ExecutionWindow(
        start="22:00", end="06:00", days=["sun", "mon", "sun"], timezone="Asia/Kathmandu"
    )
    assert window.days == ["mon", "sun"]
    assert ExecutionWindow.model_validate_json(window.model_dump_json()) == window


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"start": "25:00"},
            "Invalid `execution_window.start`: should be a time of day from `00:00` to `23:59`, two digits each; got '25:00'.",
        ),
        (
            {"end": "24:00"},
            "Invalid `execution_window.end`: should be a time of day from `00:00` to `23:59`, two digits each (write the end of a day as `00:00`); got '24:00'.",
        ),
        (
            {"start": "6:00"},
            "Invalid `execution_window.start`: should be a time of day from `00:00` to `23:59`, two digits each; got '6:00'.",
        ),
        (
            {"start": "2\uff12:00"},
            "Invalid `execution_window.start`: should be a time of day from `00:00` to `23:59`, two digits each; got '2\uff12:00'.",
        ),
        (
            {"start": "22:00\n"},
            "Invalid `execution_window.start`: should be a time of day from `00:00` to `23:59`, two digits each; got '22:00\\n'.",
        ),
        (
            {"start": "06:00"},
            "Invalid `execution_window`: should end at another time than it starts, `06:00`; send none to run at any time; got {'start': '06:00', 'end': '06:00'}.",
        ),
        (
            {"days": []},
            "Invalid `execution_window.days`: should name at least one day, such as `mon`; got [].",
        ),
        (
            {"days": ["monday"]},
            "Invalid `execution_window.days.0`: should be 'mon', 'tue', 'wed', 'thu', 'fri', 'sat' or 'sun'; got 'monday'.",
        ),
        (
            {"timezone": "Europe/Berln"},
            "Invalid `execution_window.timezone`: should be an IANA time zone such as `Europe/Berlin`, `Europe/Dublin`, `Europe/Belfast`; got 'Europe/Berln'.",
        ),
        (
            {"timezone": "../UTC"},
            "Invalid `execution_window.timezone`: should be an IANA time zone such as `Europe/Berlin`, `America/New_York`, `UTC`; got '../UTC'.",
        ),
    ],
)
def test_what_is_no_window_is_refused_with_the_remedy(fields: dict[str, Any], message: str) -> None:
    assert refusal(**fields) == message


def test_a_field_that_no_window_has_is_refused() -> None:
    with pytest.raises(ValidationError, match="zone\n  Extra inputs are not permitted"):
        ExecutionWindow.model_validate({"start": "22:00", "end": "06:00", "zone": "UTC"})


WEEKEND = ExecutionWindow(start="20:00", end="06:00", days=["sat", "sun"], timezone="Europe/Berlin")


def test_one_that_never_opens_before_the_batch_expires_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(InvalidRequest) as refused:
        refuse_if_never_open(
            WEEKEND, berlin("2026-10-21 10:30"), timedelta(hours=24), param="batch.execution_window"
        )
    assert (
        refused.value.message
        == "batch.execution_window: 20:00–06:00 Europe/Berlin, sat–sun is not open before the batch"
        " expires. From its start at wed 2026-10-21 10:30+02:00, a completion window of 24 h"
        " lasts until thu 2026-10-22 10:30+02:00, but the execution window next opens at sat"
        " 2026-10-24 20:00+02:00, 81 h 30 min after the start. Send a completion window of at"
        " least 82h, or hours that come sooner."
    )
    assert refused.value.param == "batch.execution_window"


@pytest.mark.parametrize(
    ("start", "least"),
    # The last two: opening at the very moment of the end is too late, and a night with a clock
    # change in it has another length.
    [
        ("2026-10-21 10:30", 82),
        ("2026-10-21 20:00", 73),
        ("2026-10-25 20:00", 0),
        ("2026-10-26 05:59", 0),
        ("2026-10-26 06:00", 135),
        ("2026-03-23 06:00", 135),
        ("2026-10-25 06:00", 15),
    ],
)
def test_the_completion_window_that_a_refusal_names_is_the_smallest_that_is_accepted(
    start: str, least: int
) -> None:
    moment = berlin(start)
    refuse_if_never_open(WEEKEND, moment, timedelta(hours=max(least, 1)))
    if least:
        with pytest.raises(InvalidRequest, match=f"at least {least}h,"):
            refuse_if_never_open(WEEKEND, moment, timedelta(hours=least - 1))


def test_a_batch_that_starts_while_it_is_open_is_accepted_however_little_is_left() -> None:
    refuse_if_never_open(WEEKEND, berlin("2026-10-26 05:59:59"), timedelta(hours=1))


@pytest.mark.parametrize(
    ("window", "seconds"),
    [("1h", 3600), ("24h", 86_400), ("1d", 86_400), ("7d", 604_800), ("168h", 604_800)],
)
def test_a_window_is_hours_or_days(window: str, seconds: int) -> None:
    assert windows.completion(window) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "window",
    [
        "",
        "24",
        "0h",
        "00h",
        "30m",
        "8d",
        "169h",
        "1.5h",
        "-1h",
        "24H",
        "24h\n",
        " 24h",
        "٢٤h",
        "9999h",
    ],
)
def test_any_other_window_is_refused(window: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        windows.completion(window)
    assert caught.value.param == "completion_window"

"""Templates: JSONL with placeholders, which a run replaces by its own date, time and id.

Plain substitution in string values, after JSON parsing and once: substituted text is not searched
again. All other bytes (keys, numbers, whitespace, invalid lines) stay as they are.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import orjson

from xalen_batch.errors import QUOTED_CHARS, InvalidRequest

EXAMPLES = (
    "{{scheduled_date}}, {{scheduled_date-1d:%d.%m.%Y}}, {{scheduled_time-6h:%H:%M}} or {{run_id}}"
)
UNITS = {"scheduled_date": {"d": 1, "w": 7}, "scheduled_time": {"h": 0, "d": 1, "w": 7}}
_PLAIN = re.compile(rb"\{\{\s*(?:scheduled_date|scheduled_time|run_id)\b[^{}\"]{0,80}\}\}")
# Most bytes of a placeholder that `first` finds.
LONGEST = 110
# Directives for which strftime returns the same on every platform. Each is formatted on its own;
# strftime never sees the text between them.
OF_A_DATE = "YymdjBbAauwUWGV"
OF_A_TIME = OF_A_DATE + "HIMSpzZ"

# A name that begins like one of our placeholders must be one: a typo must not run every night.
_PLACEHOLDER = re.compile(r"\{\{\s*(?=(?i:schedule[d_]|run_))([^{}]{0,200})(\}\})?")
_OURS = re.compile(
    r"(?P<name>scheduled_date|scheduled_time|run_id)\s*"
    r"(?:(?P<number>[+-]\s*[0-9]{1,4})(?P<unit>[a-z]))?\s*"
    r"(?::(?P<format>.*))?",
    re.DOTALL | re.ASCII,
)
_DIRECTIVE = re.compile("%(.?)", re.DOTALL)
# A JSON string, also an unclosed one, which matches to its end: searching again from within it
# would take quadratic time. Possessive quantifiers keep the expression from backtracking.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"([ \t\r\n]*+:)?)?', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Moment:
    """The values of placeholders: a run's (aware) instant, its schedule's zone, its public id."""

    scheduled_for: datetime
    zone: ZoneInfo
    run_id: str


@dataclass(frozen=True, slots=True)
class _Placeholder:
    name: str
    number: int
    unit: str
    format: str | None

    def value(self, moment: Moment) -> str:
        if self.name == "run_id":
            return moment.run_id
        shown = _date(moment, self) if self.name == "scheduled_date" else _time(moment, self)
        if self.format is not None:
            return _DIRECTIVE.sub(
                lambda found: "%" if found[1] == "%" else shown.strftime(found[0]), self.format
            )
        if isinstance(shown, datetime):
            return shown.isoformat(timespec="seconds")
        return shown.isoformat()


def fill(text: str, moment: Moment) -> str:
    """A text with its placeholders replaced. InvalidRequest as `check`."""
    return _PLACEHOLDER.sub(lambda found: _value(_inside(found), moment), text)


def check(text: str, *, param: str | None = None) -> None:
    """InvalidRequest for text that begins like one of our placeholders and is none."""
    try:
        for found in _PLACEHOLDER.finditer(text):
            _parse(_inside(found))
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param=param, code=error.code) from None


def first(raw: bytes) -> str | None:
    """The first placeholder in a piece of a file, as it is written there."""
    found = _PLAIN.search(raw) if b"{{" in raw else None
    return None if found is None else found[0].decode("utf-8", "replace")


def render(lines: Iterable[bytes], moment: Moment) -> Iterator[bytes]:
    """Each line with the placeholders in its string values replaced.

    InvalidRequest as `check`.
    """
    for line in lines:
        yield _line(line, moment) if _may_hold_placeholder(line) else line


def _may_hold_placeholder(raw: bytes) -> bool:
    return b"{{" in raw or b"\\u007b" in raw or b"\\u007B" in raw


def _line(line: bytes, moment: Moment) -> bytes:
    def replaced(found: re.Match[bytes]) -> bytes:
        # Group 1 is the colon after a key: keys stay.
        return found[0] if found[1] else _string(found[0], moment)

    return _STRING.sub(replaced, line)


def _string(token: bytes, moment: Moment) -> bytes:
    """A JSON string with its quotes, filled. An invalid one stays: validation reports it."""
    if not _may_hold_placeholder(token):
        return token
    try:
        text = json.loads(token.decode("utf-8"))
    except ValueError:
        return token
    filled = fill(text, moment)
    if filled == text:
        return token
    try:
        return orjson.dumps(filled)
    except orjson.JSONEncodeError:
        # A lone surrogate: orjson refuses it, json writes it as an escape.
        return json.dumps(filled).encode("ascii")


def _inside(found: re.Match[str]) -> str:
    if found[2] is None:
        raise _wrong(found[0], "is not closed by `}}`, or is longer than 200 characters. Close it")
    return found[1].strip()


@lru_cache(maxsize=64)
def _value(inside: str, moment: Moment) -> str:
    return _parse(inside).value(moment)


def _parse(inside: str) -> _Placeholder:
    """The placeholder of the text between the braces. InvalidRequest as `check`."""
    shown = "{{" + inside + "}}"
    found = _OURS.fullmatch(inside)
    if found is None:
        raise _wrong(shown, f"is no placeholder. Write one such as {EXAMPLES}")
    name, unit, format = found["name"], found["unit"], found["format"]
    if name == "run_id":
        if unit or format is not None:
            raise _wrong(
                shown,
                "is no placeholder: a run's id has neither an offset nor a format. Write"
                " {{run_id}}",
            )
        return _Placeholder(name, 0, "d", None)
    if unit and unit not in UNITS[name]:
        hint = ", or hours from {{scheduled_time-6h:%Y-%m-%d}}" if unit == "h" else ""
        raise _wrong(
            shown,
            f"has no offset that {name} knows. Write it in {_choices(UNITS[name])}, such as"
            f" -1d{hint}",
        )
    number = int(re.sub(r"\s", "", found["number"])) if unit else 0
    if format is not None:
        format = _format(name, format.strip(), shown)
    return _Placeholder(name, number, unit or "d", format)


def _format(name: str, format: str, shown: str) -> str:
    """A format, checked. InvalidRequest without a directive, or with one that is not allowed."""
    allowed = OF_A_DATE if name == "scheduled_date" else OF_A_TIME
    used = [found[1] for found in _DIRECTIVE.finditer(format)]
    known = f"Those of {name} are {' '.join('%' + letter for letter in allowed)} and %%"
    if not [letter for letter in used if letter != "%"]:
        raise _wrong(shown, f"has a format without a directive such as %Y. {known}")
    for letter in used:
        if letter != "%" and (not letter or letter not in allowed):
            raise _wrong(
                shown, f"has a format with %{letter}, which is none of its directives. {known}"
            )
    return format


def _date(moment: Moment, placeholder: _Placeholder) -> date:
    days = placeholder.number * UNITS["scheduled_date"][placeholder.unit]
    return moment.scheduled_for.astimezone(moment.zone).date() + timedelta(days=days)


def _time(moment: Moment, placeholder: _Placeholder) -> datetime:
    """A run's time plus an offset: hours are elapsed time, days and weeks keep the wall time.

    A wall time that a clock change skips moves on by the length of the gap.
    """
    if placeholder.unit == "h":
        return (moment.scheduled_for + timedelta(hours=placeholder.number)).astimezone(moment.zone)
    local = moment.scheduled_for.astimezone(moment.zone)
    if not placeholder.number:
        return local
    moved = local + timedelta(days=placeholder.number * UNITS["scheduled_time"][placeholder.unit])
    return moved.astimezone(UTC).astimezone(moment.zone)


def _choices(units: Iterable[str]) -> str:
    return " or ".join(f"`{unit}`" for unit in units)


def _wrong(shown: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{shown[:QUOTED_CHARS]!r} {problem}.", code="invalid_placeholder")

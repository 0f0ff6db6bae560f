"""When a schedule fires: cron expressions on the wall clock of an IANA time zone, also through
clock changes.

cronsim says which wall times an expression names; when the zone's clock shows them is resolved
here. (cronsim's own handling of clock changes depends on how a field is spelled, and misses fires
where a zone moves by half an hour.)
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import pairwise
from zoneinfo import ZoneInfo

from cronsim import CronSim

from xalen_batch.errors import QUOTED_CHARS, InvalidRequest
from xalen_batch.timezones import met, shown, zone

LONGEST_EXPRESSION = 200
NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
FIELDS = {
    "minute": "0 to 59, such as `30`, `0,30` or `*/15`",
    "hour": "0 to 23, such as `2`, `9-17` or `*/6`",
    "day of month": "1 to 31, `L` (the last day) or `LW` (the last weekday), such as `1,15`",
    "month": "1 to 12 or JAN to DEC, such as `1-3` or `JAN,JUL`",
    "day of week": (
        "0 to 7 or SUN to SAT (0 and 7 are Sunday), such as `1-5`, `MON#1` (the first Monday) or"
        " `5L` (the last Friday)"
    ),
}
# Of each field: its least and its greatest value, and how many there are.
SPANS = {
    "minute": (0, 59, 60),
    "hour": (0, 23, 24),
    "day of month": (1, 31, 31),
    "month": (1, 12, 12),
    "day of week": (1, 7, 7),
}
MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
FIVE_FIELDS = (
    "five fields (minute, hour, day of month, month, day of week), such as `30 2 * * *` for every"
    " night at 02:30"
)
# Whether an expression ever fires is the same from any day on: leap years and weekdays repeat
# within the 50 years that cronsim looks.
SOME_DAY = datetime(2001, 1, 1)  # noqa: DTZ001
MINUTES_OF_DAY = 1_440


@dataclass(frozen=True, slots=True)
class Cron:
    """When: a five-field cron expression in an IANA time zone."""

    expression: str
    zone: ZoneInfo

    @classmethod
    def parse(cls, expression: str, timezone: str) -> "Cron":
        """InvalidRequest for what is no expression, never fires, or is no zone."""
        if problem := _problem(expression):
            raise InvalidRequest(f"cron: {expression[:QUOTED_CHARS]!r} {problem}.", param="cron")
        return cls(expression, zone(timezone))

    def after(self, instant: datetime) -> Iterator[datetime]:
        """The instants in UTC, strictly later than an aware one, ascending. Ends where cronsim
        finds none within 50 years.

        Where every hour is named, it fires whenever the clock shows the minute, so also in the hour
        that is repeated. Otherwise each wall time is met once a day: the first time of two; at the
        end of the gap, once, for all that a clock change skips; and not at all on a day that the
        zone's calendar leaves out.
        """
        try:
            local = instant.astimezone(self.zone)
            # In an hour that will be repeated, times that are past are still to come again.
            again = local.replace(fold=1).astimezone(UTC) - local.replace(fold=0).astimezone(UTC)
            walls = _walls(
                self.expression, local.replace(tzinfo=None, fold=0) - max(again, timedelta())
            )
            meets = shown if len(walls.hours) == 24 else met
            last, ahead = instant, list[datetime]()
            for wall in walls:
                moments = meets(wall, self.zone)
                for moment in moments:
                    heappush(ahead, moment)
                # Whatever comes is no earlier than this wall time's first moment; its second one
                # waits for what lies between.
                while moments and ahead and ahead[0] <= moments[0]:
                    if (moment := heappop(ahead)) > last:
                        last = moment
                        yield moment
        except OverflowError:
            # The calendar ends with the year 9999.
            return

    def describe(self) -> str:
        """In words: `At 02:30 every day`."""
        # cronsim says "and" of two restricted day fields, and fires on a day that either of them
        # names.
        text = _walls(self.expression, SOME_DAY).explain().replace(" and on ", " or on ")
        return re.sub(
            r"\b([2-5])([123])th\b",
            lambda found: found[1] + {"1": "1st", "2": "2nd", "3": "3rd"}[found[2]],
            text,
        )

    @property
    def shortest_gap(self) -> timedelta:
        """The smallest pause between two fires of one day or of two days in a row, on a clock that
        is not changed.
        """
        walls = _walls(self.expression, SOME_DAY)
        times = sorted(60 * hour + minute for hour in walls.hours for minute in walls.minutes)
        return timedelta(
            minutes=min(
                later - earlier for earlier, later in pairwise([*times, times[0] + MINUTES_OF_DAY])
            )
        )


def _walls(expression: str, start: datetime) -> CronSim:
    """The wall times (naive) that an expression names, later than `start`."""
    return CronSim(" ".join(_fields(expression)), start)


def _fields(expression: str) -> list[str]:
    return NICKNAMES.get(expression.strip().lower(), expression).split()


def _problem(expression: str) -> str | None:
    """What is wrong with an expression and what to write instead, or None."""
    if len(expression) > LONGEST_EXPRESSION:
        return (
            f"has {len(expression)} characters; the most is {LONGEST_EXPRESSION}. Write"
            f" {FIVE_FIELDS}"
        )
    fields = _fields(expression)
    if len(fields) != 5 and expression.strip().startswith("@"):
        return f"is no nickname. Write {', '.join(NICKNAMES)}, or {FIVE_FIELDS}"
    if len(fields) != 5:
        hint = "; seconds and years are not supported" if len(fields) > 5 else ""
        return f"is made of {len(fields)} instead of five fields{hint}. Write {FIVE_FIELDS}"
    fires = _fires(expression)
    for place, (name, allowed) in enumerate(FIELDS.items()):
        if fires and (problem := _too_large_step(fields[place], name)):
            return problem
        if not fires and not _fires(" ".join([*"*" * place, fields[place], *"*" * (4 - place)])):
            return (
                f"is no cron expression: {fields[place][:QUOTED_CHARS]!r} is no {name}. Write"
                f" {_meant(fields[place], name) or allowed}"
            )
    if fires:
        return None
    return (
        "never fires: no date is as its day of month, month and day of week say. Write days that"
        " exist, such as `30 2 28 2 *`"
    )


def _too_large_step(field: str, name: str) -> str | None:
    """A step that is larger than its field means less than it says: `*/90` is minute 0 of every
    hour.
    """
    size = SPANS[name][2]
    if not any(int(step) > size for step in re.findall(r"/(\d+)", field)):
        return None
    remedy = f"Write a step of up to {size}"
    if name == "minute":
        remedy += ", or steps of whole hours, such as `0 */2 * * *` for every two hours"
    return (
        f"does not do what it says: the step of {field[:QUOTED_CHARS]!r} is larger than the field"
        f" {name}. {remedy}"
    )


def _meant(field: str, name: str) -> str | None:
    """What else to write for a `?`, or for a range that passes the end of its field; None: neither
    is wrong with it.
    """
    if field == "?":
        return "`*`, which stands for every value"
    least, greatest, _ = SPANS[name]
    parts = list[str]()
    for part in field.split(","):
        found = re.fullmatch(r"(\w+)-(\w+)", part)
        first, last = (_number(end, name) for end in found.groups()) if found else (None, None)
        if first is not None and last is not None and least <= last < first <= greatest:
            parts += [_range(first, greatest), _range(least, last)]
        elif name == "day of week" and first is not None and last == 0 < first <= greatest:
            parts.append(_range(first, greatest))
        else:
            parts.append(part)
    meant = ",".join(parts)
    return None if meant == field else f"`{meant}`: a range does not pass the end of its field"


def _number(text: str, name: str) -> int | None:
    """A value of a field, also by its English name; None for anything else."""
    named = {"month": ["", *MONTHS], "day of week": DAYS}.get(name, [])
    if text.upper() in named:
        return named.index(text.upper())
    return int(text) if re.fullmatch(r"[0-9]{1,2}", text) else None


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _fires(expression: str) -> bool:
    try:
        return next(_walls(expression, SOME_DAY), None) is not None
    except Exception:  # Whatever cronsim trips over, the expression is at fault.
        return False

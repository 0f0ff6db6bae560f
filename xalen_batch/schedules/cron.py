"""Cron expressions on the wall clock of an IANA time zone, also through clock changes.

cronsim yields the wall times of an expression; this module maps them to moments. (cronsim's own
handling of clock changes depends on the spelling of a field, and misses fires in zones that move by
half an hour.)
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
# Of each field: its least value, its greatest value, and the number of its values.
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
# A start for checks. An expression that fires at all fires within 50 years of any day, cronsim's
# horizon: leap years and weekdays repeat within them.
SOME_DAY = datetime(2001, 1, 1)  # noqa: DTZ001
MINUTES_OF_DAY = 1_440


@dataclass(frozen=True, slots=True)
class Cron:
    """A five-field cron expression in an IANA time zone."""

    expression: str
    zone: ZoneInfo

    @classmethod
    def parse(cls, expression: str, timezone: str) -> "Cron":
        """InvalidRequest for an invalid expression or zone, and for one that never fires."""
        problem = _problem(expression)
        if problem is not None:
            raise InvalidRequest(f"cron: {expression[:QUOTED_CHARS]!r} {problem}.", param="cron")
        return cls(expression, zone(timezone))

    def after(self, instant: datetime) -> Iterator[datetime]:
        """The instants in UTC, strictly later than an aware one, ascending.

        An expression for every hour fires whenever the clock shows its minute, so twice in a
        repeated hour. Any other fires once for each wall time: at the first of two moments if the
        wall time is repeated; at the end of the gap, once, for all wall times that a clock change
        skips; never on a day that the zone's calendar skips. Ends if there is none within 50 years.
        """
        try:
            local = instant.astimezone(self.zone)
            # Within an hour that is repeated, begin earlier: its past wall times come again.
            again = local.replace(fold=1).astimezone(UTC) - local.replace(fold=0).astimezone(UTC)
            start = local.replace(tzinfo=None, fold=0) - max(again, timedelta())
            walls = _walls(self.expression, start)
            moments_of = shown if len(walls.hours) == 24 else met
            last, ahead = instant, list[datetime]()
            for wall in walls:
                moments = moments_of(wall, self.zone)
                for moment in moments:
                    heappush(ahead, moment)
                # Later wall times have no moment before this one's first. Its second moment stays
                # in the heap, as moments of later wall times may lie between.
                while moments and ahead and ahead[0] <= moments[0]:
                    moment = heappop(ahead)
                    if moment > last:
                        last = moment
                        yield moment
        except OverflowError:
            # The calendar ends with the year 9999.
            return

    def describe(self) -> str:
        """In words: `At 02:30 every day`."""
        # cronsim writes "and" between two restricted day fields, but fires if either matches.
        text = _walls(self.expression, SOME_DAY).explain().replace(" and on ", " or on ")
        return re.sub(
            r"\b([2-5])([123])th\b",
            lambda found: found[1] + {"1": "1st", "2": "2nd", "3": "3rd"}[found[2]],
            text,
        )

    @property
    def shortest_gap(self) -> timedelta:
        """The shortest time between two fires on one day or two days in a row.

        Clock changes are left out.
        """
        walls = _walls(self.expression, SOME_DAY)
        times = sorted(60 * hour + minute for hour in walls.hours for minute in walls.minutes)
        # The last fire of a day is followed by the first of the next.
        times.append(times[0] + MINUTES_OF_DAY)
        return timedelta(minutes=min(later - earlier for earlier, later in pairwise(times)))


def _walls(expression: str, start: datetime) -> CronSim:
    """The (naive) wall times of an expression, later than `start`."""
    return CronSim(" ".join(_fields(expression)), start)


def _fields(expression: str) -> list[str]:
    return NICKNAMES.get(expression.strip().lower(), expression).split()


def _problem(expression: str) -> str | None:
    """The error of an expression and its remedy, or None."""
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
    for position, name in enumerate(FIELDS):
        if fires:
            problem = _too_large_step(fields[position], name)
        else:
            problem = _invalid_field(fields[position], name, position)
        if problem is not None:
            return problem
    if fires:
        return None
    return (
        "never fires: no date is as its day of month, month and day of week say. Write days that"
        " exist, such as `30 2 28 2 *`"
    )


def _invalid_field(field: str, name: str, position: int) -> str | None:
    """The error of a field that fires in no expression; None if the field is valid."""
    alone = ["*"] * 5
    alone[position] = field
    if _fires(" ".join(alone)):
        return None
    remedy = _meant(field, name) or FIELDS[name]
    return f"is no cron expression: {field[:QUOTED_CHARS]!r} is no {name}. Write {remedy}"


def _too_large_step(field: str, name: str) -> str | None:
    """The error of a step larger than its field: `*/90` minutes would be minute 0 of each hour."""
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
    """The likely intent of an invalid field: a `?`, or a range past the end. None for any other."""
    if field == "?":
        return "`*`, which stands for every value"
    least, greatest, _ = SPANS[name]
    parts = list[str]()
    for part in field.split(","):
        found = re.fullmatch(r"(\w+)-(\w+)", part)
        first = _number(found[1], name) if found else None
        last = _number(found[2], name) if found else None
        if first is not None and last is not None and least <= last < first <= greatest:
            parts += [_range(first, greatest), _range(least, last)]
        elif name == "day of week" and first is not None and last == 0 < first <= greatest:
            parts.append(_range(first, greatest))
        else:
            parts.append(part)
    meant = ",".join(parts)
    return None if meant == field else f"`{meant}`: a range does not pass the end of its field"


def _number(text: str, name: str) -> int | None:
    """A value of a field, given as a number or by its English name; None for anything else."""
    named = {"month": ["", *MONTHS], "day of week": DAYS}.get(name, [])
    if text.upper() in named:
        return named.index(text.upper())
    return int(text) if re.fullmatch(r"[0-9]{1,2}", text) else None


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _fires(expression: str) -> bool:
    """Whether an expression is valid and ever fires."""
    try:
        return next(_walls(expression, SOME_DAY), None) is not None
    except Exception:  # cronsim raises many kinds of errors for an invalid expression.
        return False

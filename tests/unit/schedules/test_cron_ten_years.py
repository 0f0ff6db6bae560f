"""Ten years of fires in 20 zones, compared with instants that are derived from the zones' clock
changes, without cronsim.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest

from xalen_batch.schedules.cron import Cron

ZONES = [
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "Atlantic/Azores",
    "Africa/Cairo",
    "Africa/Casablanca",  # an hour back for Ramadan
    "Asia/Beirut",
    "Asia/Jerusalem",
    "Asia/Kathmandu",
    "Asia/Tokyo",
    "America/New_York",
    "America/St_Johns",
    "America/Havana",
    "America/Santiago",
    "America/Nuuk",
    "Australia/Lord_Howe",  # half an hour
    "Pacific/Auckland",
    "Pacific/Chatham",
    "Pacific/Apia",
    "Antarctica/Troll",  # two hours
]
START, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE, HOUR, DAY = 60, 3_600, 86_400
AROUND = DAY
Times = list[tuple[int, int]]


def seconds(moment: datetime) -> int:
    return int((moment - EPOCH).total_seconds())


FIRST, LAST = seconds(START), seconds(END)


class Clock:
    """A zone's clock as pieces of one offset each; times are whole seconds since 1970, in UTC or,
    for `wall`, on the clock.
    """

    def __init__(self, name: str) -> None:
        self.zone = ZoneInfo(name)
        self.begins, self.offsets = [FIRST - 30 * DAY], [self.offset_at(FIRST - 30 * DAY)]
        # No zone changes its clock twice in 12 hours.
        for probe in range(self.begins[0] + DAY // 2, LAST + 30 * DAY, DAY // 2):
            if self.offset_at(probe) != self.offsets[-1]:
                before, after = probe - DAY // 2, probe
                while after - before > 1:
                    middle = (before + after) // 2
                    before, after = (
                        (middle, after)
                        if self.offset_at(middle) == self.offsets[-1]
                        else (before, middle)
                    )
                self.begins.append(after)
                self.offsets.append(self.offset_at(after))

    def offset_at(self, moment: int) -> int:
        offset = datetime.fromtimestamp(moment, self.zone).utcoffset()
        assert offset is not None
        return int(offset.total_seconds())

    def wall(self, moment: int) -> int:
        return moment + self.offsets[bisect_right(self.begins, moment) - 1]

    @property
    def changes(self) -> list[tuple[int, int, int]]:
        """Each change: when, and the offset before and after it."""
        return [
            change
            for change in zip(self.begins[1:], self.offsets, self.offsets[1:], strict=False)
            if FIRST + AROUND < change[0] < LAST - AROUND
        ]

    def reached(self, wall: int) -> int:
        """The first moment at which the clock shows a wall time, else the end of the gap that it is
        in.
        """
        near = bisect_right(self.begins, wall)
        for piece in range(max(near - 2, 0), min(near + 2, len(self.begins))):
            moment = wall - self.offsets[piece]
            if moment < self.begins[piece]:
                return self.begins[piece]  # No earlier piece showed it: skipped.
            if piece + 1 == len(self.begins) or moment < self.begins[piece + 1]:
                return moment
        raise AssertionError(wall)

    def meets(self, times: Times, is_day: Callable[[date], bool]) -> list[int]:
        """The moments of wall times on the dates of a calendar."""
        found = set()
        for number in range(FIRST // DAY - 1, LAST // DAY + 1):
            if is_day(date.fromordinal(EPOCH.toordinal() + number)):
                found |= {
                    self.reached(number * DAY + hour * HOUR + minute * MINUTE)
                    for hour, minute in times
                }
        return sorted(moment for moment in found if FIRST <= moment < LAST)

    def shows(self, minutes: set[int], begin: int, end: int) -> list[int]:
        """The moments at which the clock shows one of these minutes of the hour, read off minute by
        minute.
        """
        return [
            moment
            for moment in range(begin, end, MINUTE)
            if self.wall(moment) // MINUTE % 60 in minutes
        ]


clock = cache(Clock)


def fires(expression: str, zone: str, begin: int, end: int) -> list[int]:
    moments = Cron.parse(expression, zone).after(EPOCH + timedelta(seconds=begin - 1))
    return list(takewhile(lambda moment: moment < end, map(seconds, moments)))


def is_any(day: date) -> bool:
    return True


def is_last_friday(day: date) -> bool:
    return day.weekday() == 4 and (day + timedelta(days=7)).month != day.month


FIXED: list[tuple[str, Times, Callable[[date], bool]]] = [
    ("15 22 * * 1-5", [(22, 15)], lambda day: day.weekday() < 5),
    ("0 3 1 * *", [(3, 0)], lambda day: day.day == 1),
    ("45 23 L * *", [(23, 45)], lambda day: (day + timedelta(days=1)).day == 1),
    ("5 1 * * 5L", [(1, 5)], is_last_friday),
    ("30 2 29 2 *", [(2, 30)], lambda day: (day.month, day.day) == (2, 29)),
    (
        "*/20 1-3 * 3,4,9-11 0",
        [(hour, minute) for hour in (1, 2, 3) for minute in (0, 20, 40)],
        lambda day: day.weekday() == 6 and day.month in (3, 4, 9, 10, 11),
    ),
    (
        "0 */4 * 3,4,9-11 *",
        [(hour, 0) for hour in range(0, 24, 4)],
        lambda day: day.month in (3, 4, 9, 10, 11),
    ),
]


def changed_times(zone: str) -> Iterator[tuple[int, int]]:
    """A time of day in the middle of each gap and of each repeated stretch of a zone."""
    for moment, before, after in clock(zone).changes:
        yield divmod((moment + (before + after) // 2) % DAY // MINUTE, 60)


@pytest.mark.parametrize("zone", ZONES)
def test_wall_times_are_met_once_a_day_for_ten_years(zone: str) -> None:
    compared = 0
    nightly = [
        (f"{minute} {hour} * * *", [(hour, minute)], is_any)
        for hour, minute in set(changed_times(zone)) or {(2, 30)}
    ]
    for expression, times, is_day in FIXED + nightly:
        expected = clock(zone).meets(times, is_day)
        found = fires(expression, zone, FIRST, LAST)
        assert found == expected, expression
        if is_day is is_any:
            assert all(
                20 * HOUR <= later - earlier <= 28 * HOUR for earlier, later in pairwise(found)
            ), expression
        compared += len(expected)
    assert compared > 11_500


@pytest.mark.parametrize("zone", ZONES)
def test_every_hour_is_every_time_that_the_clock_shows_the_minute(zone: str) -> None:
    compared = 0
    # How often a zone changes its clock depends on the release of the database; the first ten days
    # are always there.
    stretches = [
        (FIRST, FIRST + 10 * DAY),
        *((moment - AROUND, moment + AROUND) for moment, _, _ in clock(zone).changes),
    ]
    for begin, end in stretches:
        for expression, minutes in (("*/15 * * * *", {0, 15, 30, 45}), ("45 * * * *", {45})):
            expected = clock(zone).shows(minutes, begin, end)
            assert fires(expression, zone, begin, end) == expected, expression
            compared += len(expected)
    assert compared > 1_000


@pytest.mark.parametrize("zone", ZONES)
def test_every_hour_is_24_times_on_any_other_day(zone: str) -> None:
    counts = Counter(
        clock(zone).wall(moment) // DAY for moment in fires("45 * 1,15 * *", zone, FIRST, LAST)
    )
    changed = {
        clock(zone).wall(moment) // DAY
        for change, _, _ in clock(zone).changes
        for moment in (change - 1, change)
    }
    # The first and the last day may be cut.
    others = sorted(day for day in counts if day not in changed)[1:-1]
    assert {counts[day] for day in others} == {24}
    assert sum(counts[day] for day in others) > 5_500

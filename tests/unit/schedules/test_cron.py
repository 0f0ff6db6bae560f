"""Cron expressions in time zones: their fires, also on the nights when clocks change."""

from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xalen_batch.errors import InvalidRequest
from xalen_batch.schedules.cron import Cron
from xalen_batch.timezones import zone


def local(cron: Cron, moment: datetime) -> str:
    return moment.astimezone(cron.zone).isoformat(" ", "minutes")


def fires(expression: str, timezone: str, start: str, end: str) -> list[str]:
    """The fires on the dates from `start` to `end`, both included, as local times with offsets."""
    cron = Cron.parse(expression, timezone)
    begin = datetime.fromisoformat(start).replace(tzinfo=cron.zone)
    moments = cron.after(begin - timedelta(seconds=1))
    return list(
        takewhile(lambda shown: shown[:10] <= end, (local(cron, moment) for moment in moments))
    )


@pytest.mark.parametrize(
    ("timezone", "expression", "dates", "expected"),
    [
        # The clock skips the wall time: it fires at the end of the gap.
        (
            "Europe/Berlin",
            "30 2 * * *",
            "2026-03-28 2026-03-30",
            "28 02:30+01:00, 29 03:00+02:00, 30 02:30+02:00",
        ),
        (
            "America/New_York",
            "30 2 * * *",
            "2026-03-07 2026-03-09",
            "07 02:30-05:00, 08 03:00-04:00, 09 02:30-04:00",
        ),
        (
            "Australia/Lord_Howe",
            "15 2 * * *",
            "2026-10-03 2026-10-05",
            "03 02:15+10:30, 04 02:30+11:00, 05 02:15+11:00",
        ),
        (
            "Africa/Cairo",
            "0 0 * * *",
            "2026-04-23 2026-04-25",
            "23 00:00+02:00, 24 01:00+03:00, 25 00:00+03:00",
        ),
        (
            "Pacific/Apia",
            "30 2 * * *",
            "2011-12-29 2012-01-01",
            "29 02:30-10:00, 31 02:30+14:00, 01 02:30+14:00",
        ),
        # The clock shows the time twice: it fires the first time.
        (
            "Europe/Berlin",
            "30 2 * * *",
            "2026-10-24 2026-10-26",
            "24 02:30+02:00, 25 02:30+02:00, 26 02:30+01:00",
        ),
        (
            "America/New_York",
            "30 1 * * *",
            "2026-10-31 2026-11-02",
            "31 01:30-04:00, 01 01:30-04:00, 02 01:30-05:00",
        ),
        (
            "Australia/Lord_Howe",
            "45 1 * * *",
            "2026-04-04 2026-04-06",
            "04 01:45+11:00, 05 01:45+11:00, 06 01:45+10:30",
        ),
        (
            "Africa/Cairo",
            "30 23 * * *",
            "2026-10-28 2026-10-30",
            "28 23:30+03:00, 29 23:30+03:00, 30 23:30+02:00",
        ),
        # The end of the repeated hour occurs once.
        ("Europe/Berlin", "0 3 * * *", "2026-10-25 2026-10-26", "25 03:00+01:00, 26 03:00+01:00"),
        # Clocks that are never changed.
        (
            "Asia/Kathmandu",
            "30 2 * * *",
            "2026-03-28 2026-03-30",
            "28 02:30+05:45, 29 02:30+05:45, 30 02:30+05:45",
        ),
    ],
)
def test_a_nightly_job_runs_once_a_night(
    timezone: str, expression: str, dates: str, expected: str
) -> None:
    assert [fire[8:] for fire in fires(expression, timezone, *dates.split())] == expected.split(
        ", "
    )


@pytest.mark.parametrize(
    ("timezone", "minute", "date", "expected"),
    [
        (
            "Europe/Berlin",
            "0,30",
            "2026-03-29",
            "00:00+01:00 00:30+01:00 01:00+01:00 01:30+01:00 03:00+02:00 03:30+02:00",
        ),
        (
            "Europe/Berlin",
            "30",
            "2026-10-25",
            "00:30+02:00 01:30+02:00 02:30+02:00 02:30+01:00 03:30+01:00 04:30+01:00",
        ),
        (
            "Europe/Berlin",
            "*/30",
            "2026-10-25",
            "00:00+02:00 00:30+02:00 01:00+02:00 01:30+02:00 02:00+02:00 02:30+02:00 02:00+01:00",
        ),
        ("America/New_York", "15", "2026-03-08", "00:15-05:00 01:15-05:00 03:15-04:00 04:15-04:00"),
        ("America/New_York", "15", "2026-11-01", "00:15-04:00 01:15-04:00 01:15-05:00 02:15-05:00"),
        # Half an hour: each minute that the clock shows, so 45 comes again after 30 minutes, and 15
        # is skipped.
        (
            "Australia/Lord_Howe",
            "45",
            "2026-04-05",
            "00:45+11:00 01:45+11:00 01:45+10:30 02:45+10:30",
        ),
        (
            "Australia/Lord_Howe",
            "15",
            "2026-10-04",
            "00:15+10:30 01:15+10:30 03:15+11:00 04:15+11:00",
        ),
        ("Africa/Cairo", "0", "2026-04-24", "01:00+03:00 02:00+03:00"),
        ("Asia/Kathmandu", "0", "2026-03-29", "00:00+05:45 01:00+05:45"),
    ],
)
@pytest.mark.parametrize("hours", ["*", "*/1", "0-23"])
def test_an_hourly_job_runs_whenever_the_clock_shows_its_minute(
    timezone: str, minute: str, date: str, expected: str, hours: str
) -> None:
    shown = [fire[11:] for fire in fires(f"{minute} {hours} * * *", timezone, date, date)]
    assert shown[: len(expected.split())] == expected.split()


def test_an_hourly_job_runs_once_per_real_hour_in_both_nights() -> None:
    cron = Cron.parse("@hourly", "Europe/Berlin")
    for night in (datetime(2026, 3, 28, 20, tzinfo=UTC), datetime(2026, 10, 24, 20, tzinfo=UTC)):
        assert list(islice(cron.after(night), 12)) == [
            night + timedelta(hours=hour) for hour in range(1, 13)
        ]


def test_the_hour_repeated_across_midnight_belongs_to_the_day_that_it_is_in() -> None:
    # Cairo goes from Thursday 24:00 back to 23:00; an hourly job of Thursdays has 25 fires.
    shown = fires("0 * * * thu", "Africa/Cairo", "2026-10-29", "2026-10-30")
    assert (len(shown), shown[-2:]) == (25, ["2026-10-29 23:00+03:00", "2026-10-29 23:00+02:00"])
    assert (
        fires("0 * * * fri", "Africa/Cairo", "2026-10-29", "2026-10-30")[0]
        == "2026-10-30 00:00+02:00"
    )


@pytest.mark.parametrize(
    ("expression", "date", "expected"),
    [
        ("*/30 2 * * *", "2026-03-29", "03:00+02:00"),
        ("*/30 2 * * *", "2026-10-25", "02:00+02:00 02:30+02:00"),
        ("* 2 * * *", "2026-03-29", "03:00+02:00"),
        ("0 */2 * * *", "2026-03-29", "00:00+01:00 03:00+02:00 04:00+02:00 06:00+02:00"),
        ("0 */2 * * *", "2026-10-25", "00:00+02:00 02:00+02:00 04:00+01:00 06:00+01:00"),
        # Skipped times and one that is really there at the end of the gap are one fire.
        ("0,20 2,3 * * *", "2026-03-29", "03:00+02:00 03:20+02:00"),
    ],
)
def test_a_star_in_a_field_changes_nothing_on_nights_when_clocks_change(
    expression: str, date: str, expected: str
) -> None:
    assert [fire[11:] for fire in fires(expression, "Europe/Berlin", date, date)][
        : len(expected.split())
    ] == expected.split()


def test_a_day_that_the_calendar_leaves_out_has_no_fire() -> None:
    assert fires("0 0 30 * *", "Pacific/Apia", "2011-11-01", "2012-01-31") == [
        "2011-11-30 00:00-10:00",
        "2012-01-30 00:00+14:00",
    ]
    assert fires("0 */12 * * *", "Pacific/Apia", "2011-12-29", "2011-12-31") == [
        "2011-12-29 00:00-10:00",
        "2011-12-29 12:00-10:00",
        "2011-12-31 00:00+14:00",
        "2011-12-31 12:00+14:00",
    ]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 29 2 *", ["2028-02-29", "2032-02-29", "2036-02-29"]),
        ("0 0 L * *", ["2026-01-31", "2026-02-28", "2026-03-31"]),
        ("0 0 LW * *", ["2026-01-30", "2026-02-27", "2026-03-31"]),
        ("0 0 * * 5L", ["2026-01-30", "2026-02-27", "2026-03-27"]),
        ("0 0 * * MON#2", ["2026-01-12", "2026-02-09", "2026-03-09"]),
        ("0 0 * * 1-5", ["2026-01-02", "2026-01-05", "2026-01-06"]),
        ("0 0 * * 7", ["2026-01-04", "2026-01-11", "2026-01-18"]),
        # Both day fields given: either; one of them starred: both.
        ("0 0 13 * FRI", ["2026-01-02", "2026-01-09", "2026-01-13"]),
        ("0 0 */12 * FRI", ["2026-02-13", "2026-03-13", "2026-05-01"]),
        ("@weekly", ["2026-01-04", "2026-01-11", "2026-01-18"]),
        (" @Monthly ", ["2026-02-01", "2026-03-01", "2026-04-01"]),
        ("@YEARLY", ["2027-01-01", "2028-01-01", "2029-01-01"]),
        ("@annually", ["2027-01-01", "2028-01-01", "2029-01-01"]),
        ("@midnight", ["2026-01-02", "2026-01-03", "2026-01-04"]),
    ],
)
def test_days_are_as_written(expression: str, expected: list[str]) -> None:
    cron = Cron.parse(expression, "Europe/Berlin")
    begin = datetime(2026, 1, 1, tzinfo=cron.zone)
    assert [local(cron, moment)[:16] for moment in islice(cron.after(begin), 3)] == [
        f"{date} 00:00" for date in expected
    ]


def test_fires_are_strictly_later_and_in_utc() -> None:
    cron = Cron.parse("30 2 * * *", "Europe/Berlin")
    due = datetime(2026, 7, 1, 0, 30, tzinfo=UTC)
    moment = timedelta(microseconds=1)
    assert next(cron.after(due - moment)) == due
    assert next(cron.after(due)) == next(cron.after(due + moment)) == due + timedelta(days=1)
    assert next(cron.after(due)).tzinfo is UTC


def test_fires_end_with_the_calendar() -> None:
    cron = Cron.parse("0 0 1 1 *", "Pacific/Apia")
    assert len(list(cron.after(datetime(9990, 6, 1, tzinfo=UTC)))) == 9
    assert list(cron.after(datetime.max.replace(tzinfo=UTC))) == []


CHANGES = [
    ("Europe/Berlin", "2026-03-29T01:00Z"),
    ("Europe/Berlin", "2026-10-25T01:00Z"),
    ("America/Havana", "2026-03-08T05:00Z"),
    ("America/Havana", "2026-11-01T05:00Z"),
    ("America/St_Johns", "2010-11-07T02:31Z"),
    ("Australia/Lord_Howe", "2026-04-04T15:00Z"),
    ("Australia/Lord_Howe", "2026-10-03T15:30Z"),
    ("Africa/Cairo", "2026-04-23T22:00Z"),
    ("Africa/Cairo", "2026-10-29T21:00Z"),
    ("Pacific/Apia", "2011-12-30T10:00Z"),
    ("Antarctica/Troll", "2026-10-25T01:00Z"),
]
JOBS = [
    "30 2 * * *",
    "*/15 0-3,22,23 * * *",
    "0 0 * * *",
    "45 1 * * *",
    "45 * * * *",
    "*/20 * * * *",
    "* * * * *",
    "*/5 * * * SUN",
]
HOURS = st.integers(-240, 240).map(lambda minutes: timedelta(minutes=minutes))


@given(st.sampled_from(CHANGES), st.sampled_from(JOBS), HOURS, HOURS)
def test_it_fires_at_the_same_instants_wherever_one_starts_to_look(
    change: tuple[str, str], expression: str, one: timedelta, other: timedelta
) -> None:
    cron, changed = Cron.parse(expression, change[0]), datetime.fromisoformat(change[1])
    start, later = sorted((changed + one, changed + other))

    def seen_from(moment: datetime) -> list[datetime]:
        return list(takewhile(lambda fire: fire < changed + timedelta(days=2), cron.after(moment)))

    seen = seen_from(start)
    assert seen == sorted(set(seen))
    assert seen_from(later) == [moment for moment in seen if moment > later]


@pytest.mark.parametrize(
    ("expression", "gap"),
    [
        ("30 2 * * *", timedelta(days=1)),
        ("0 3 1 * *", timedelta(days=1)),
        ("@hourly", timedelta(hours=1)),
        ("* * * * *", timedelta(minutes=1)),
        ("*/7 * * * *", timedelta(minutes=4)),
        ("58 23,0 * * *", timedelta(hours=1)),
        ("1,59 0,23 * * *", timedelta(minutes=2)),
        ("0 9-17/4 * * *", timedelta(hours=4)),
    ],
)
def test_the_shortest_gap_is_the_least_time_between_two_fires(
    expression: str, gap: timedelta
) -> None:
    assert Cron.parse(expression, "UTC").shortest_gap == gap


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("30 2 * * *", "At 02:30 every day"),
        ("@Daily", "At 00:00 every day"),
        ("*/15 * * * *", "Every 15th minute of every hour"),
        ("0 22 * * 1-5", "At 22:00 on Monday through Friday"),
        ("0 6 21,22,31 * *", "At 06:00 on the 21st, the 22nd, and the 31st day of month"),
        ("30 2 1 * mon", "At 02:30 on the first day of month or on Monday"),
        ("0 2 L * 5L", "At 02:00 on the last day of the month or on the last Friday of the month"),
        ("0 2 */2 * 1", "At 02:00 on every second day of month if it's on Monday"),
        ("0 6 11,12,13 * *", "At 06:00 on the 11th, the 12th, and the 13th day of month"),
    ],
)
def test_an_expression_is_told_in_words(expression: str, words: str) -> None:
    assert Cron.parse(expression, "UTC").describe() == words


def test_zones_are_those_of_the_iana_database() -> None:
    assert zone("Europe/Berlin") == ZoneInfo("Europe/Berlin")
    assert datetime(2026, 1, 1, tzinfo=zone("UTC")) == datetime(2026, 1, 1, tzinfo=UTC)


PARTS = [
    "*",
    "L",
    "LW",
    "W",
    "?",
    "#",
    "/",
    "-",
    ",",
    "0",
    "1",
    "5",
    "7",
    "12",
    "23",
    "29",
    "31",
    "59",
    "99",
    "mon",
    "FRI",
    "jan",
    "feb",
    "²",
    "*/2",
    "1-5",
]
FIELD = st.one_of(
    st.just("*"), st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("".join)
)
EXPRESSION = st.one_of(
    st.text(max_size=250),
    st.lists(FIELD, min_size=4, max_size=7).map(" ".join),
    st.lists(FIELD, min_size=5, max_size=5).map(" ".join),
)


@given(
    EXPRESSION, st.one_of(st.sampled_from(["Europe/Berlin", "Africa/Cairo"]), st.text(max_size=70))
)
@example("*,* *,* L,LW,LW/2 *,FEB *,5L,MON#5", "Africa/Cairo")
@example(",".join(["*/1"] * 40) + " * * * *", "UTC")
def test_any_text_is_a_schedule_that_fires_or_is_refused(expression: str, timezone: str) -> None:
    try:
        cron = Cron.parse(expression, timezone)
    except InvalidRequest:
        return
    start = datetime(2026, 3, 1, tzinfo=UTC)
    found = list(islice(cron.after(start), 3))
    assert len(found) == 3
    assert start < found[0] < found[1] < found[2]
    assert timedelta(minutes=1) <= cron.shortest_gap <= timedelta(days=1)
    assert cron.describe()

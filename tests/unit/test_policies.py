"""Misfire and overlap, as pure decisions."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.misfire import ON_TIME, Meeting, Miss, meet, sort_out

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def definition(**fields: Any) -> Definition:
    return Definition.model_validate(
        {
            "name": "n",
            "cron": "0 * * * *",
            "endpoint": "/v1/chat/completions",
            "input_file_id": "file-1",
            **fields,
        }
    )


def hourly(count: int, *, last_age: timedelta) -> list[tuple[datetime, timedelta]]:
    """So many instants an hour apart, the last of them `last_age` ago."""
    ages = [last_age + HOUR * n for n in reversed(range(count))]
    return [(NOON - age, age) for age in ages]


LATE = ON_TIME + timedelta(seconds=1)


class TestMisfire:
    def test_an_instant_on_time_runs_whatever_the_policy(self) -> None:
        for misfire in ("latest", "all", "none"):
            come = hourly(1, last_age=ON_TIME)
            assert sort_out(come, definition(misfire=misfire)).run == [come[0][0]]

    def test_latest_runs_the_newest_of_the_late_ones(self) -> None:
        come = hourly(4, last_age=LATE)
        due = sort_out(come, definition())
        assert due.run == [come[-1][0]]
        assert due.missed == [(instant, Miss.LATER_ONE) for instant, _ in come[:-1]]

    def test_latest_runs_none_of_the_late_ones_beside_one_that_is_on_time(self) -> None:
        come = hourly(3, last_age=timedelta(seconds=3))
        due = sort_out(come, definition())
        assert due.run == [come[-1][0]]
        assert [reason for _, reason in due.missed] == [Miss.LATER_ONE] * 2

    def test_all_runs_the_newest_up_to_its_limit_oldest_first(self) -> None:
        come = hourly(5, last_age=LATE)
        due = sort_out(come, definition(misfire="all", misfire_limit=3))
        assert due.run == [instant for instant, _ in come[2:]]
        assert due.missed == [(instant, Miss.TOO_MANY) for instant, _ in come[:2]]

    def test_none_misses_what_is_late(self) -> None:
        come = hourly(2, last_age=LATE)
        assert sort_out(come, definition(misfire="none")).missed == [
            (instant, Miss.NEVER_LATE) for instant, _ in come
        ]

    def test_what_is_older_than_the_catch_up_window_is_missed(self) -> None:
        come = hourly(3, last_age=HOUR)
        due = sort_out(come, definition(misfire="all", catch_up_window="90m"))
        assert due.run == [come[-1][0]]
        assert due.missed == [(instant, Miss.TOO_OLD) for instant, _ in come[:-1]]

    @given(
        ages=st.lists(st.integers(0, 60 * 48), unique=True, min_size=1, max_size=60),
        misfire=st.sampled_from(["latest", "all", "none"]),
        limit=st.integers(1, 100),
    )
    def test_every_instant_is_run_or_missed_once_and_runs_are_in_order(
        self, ages: list[int], misfire: str, limit: int
    ) -> None:
        come = [
            (NOON - timedelta(minutes=age), timedelta(minutes=age))
            for age in sorted(ages, reverse=True)
        ]
        due = sort_out(come, definition(misfire=misfire, misfire_limit=limit))
        assert sorted([*due.run, *(instant for instant, _ in due.missed)]) == [
            instant for instant, _ in come
        ]
        assert due.run == sorted(due.run)


@pytest.mark.parametrize(
    ("overlap", "is_running", "is_waiting", "expected"),
    [
        ("skip", True, False, Meeting.SKIP),
        ("skip", False, True, Meeting.SKIP),
        ("buffer_one", True, False, Meeting.WAIT),
        ("buffer_one", True, True, Meeting.SKIP),
        ("allow", True, True, Meeting.START),
        ("cancel_previous", True, False, Meeting.CANCEL_PREVIOUS),
        ("skip", False, False, Meeting.START),
        ("buffer_one", False, False, Meeting.START),
        ("cancel_previous", False, False, Meeting.START),
    ],
)
def test_a_run_that_meets_the_one_before(
    overlap: Any, is_running: bool, is_waiting: bool, expected: Meeting
) -> None:
    assert meet(overlap, is_running=is_running, is_waiting=is_waiting, is_made_up=False) is expected


def test_runs_made_up_for_wait_for_each_other_unless_they_may_overlap() -> None:
    assert meet("skip", is_running=True, is_waiting=True, is_made_up=True) is Meeting.WAIT
    assert meet("allow", is_running=True, is_waiting=True, is_made_up=True) is Meeting.START

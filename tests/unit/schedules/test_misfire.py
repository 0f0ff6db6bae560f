"""Misfire: which late instants run, and which are missed."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch.schedules import misfire
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.misfire import ON_TIME, Miss, Plan, plan

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


def hourly(count: int, *, last_age: timedelta) -> list[datetime]:
    """`count` instants an hour apart, the last of them `last_age` before noon."""
    return [NOON - last_age - HOUR * n for n in reversed(range(count))]


def planned(instants: list[datetime], **fields: Any) -> Plan:
    return plan(instants, NOON, definition(**fields))


LATE = ON_TIME + timedelta(seconds=1)


class TestPlan:
    def test_an_instant_on_time_runs_whatever_the_policy(self) -> None:
        for policy in ("latest", "all", "none"):
            come = hourly(1, last_age=ON_TIME)
            assert planned(come, misfire=policy).run == come

    def test_latest_runs_the_newest_of_the_late_ones(self) -> None:
        come = hourly(4, last_age=LATE)
        found = planned(come)
        assert found.run == [come[-1]]
        assert found.missed == [(instant, Miss.LATER_ONE) for instant in come[:-1]]

    def test_latest_runs_none_of_the_late_ones_beside_one_that_is_on_time(self) -> None:
        come = hourly(3, last_age=timedelta(seconds=3))
        found = planned(come)
        assert found.run == [come[-1]]
        assert [reason for _, reason in found.missed] == [Miss.LATER_ONE] * 2

    def test_all_runs_the_newest_up_to_its_limit_oldest_first(self) -> None:
        come = hourly(5, last_age=LATE)
        found = planned(come, misfire="all", misfire_limit=3)
        assert found.run == come[2:]
        assert found.missed == [(instant, Miss.TOO_MANY) for instant in come[:2]]

    def test_none_misses_late_instants(self) -> None:
        come = hourly(2, last_age=LATE)
        assert planned(come, misfire="none").missed == [
            (instant, Miss.NEVER_LATE) for instant in come
        ]

    def test_an_instant_older_than_the_catch_up_window_is_missed(self) -> None:
        come = hourly(3, last_age=HOUR)
        found = planned(come, misfire="all", catch_up_window="90m")
        assert found.run == [come[-1]]
        assert found.missed == [(instant, Miss.TOO_OLD) for instant in come[:-1]]

    def test_no_instant_makes_an_empty_plan(self) -> None:
        assert planned([]) == Plan([], [])

    @given(
        ages=st.lists(st.integers(0, 60 * 48), unique=True, min_size=1, max_size=60),
        misfire=st.sampled_from(["latest", "all", "none"]),
        limit=st.integers(1, 100),
    )
    def test_every_instant_is_run_or_missed_once_and_runs_are_in_order(
        self, ages: list[int], misfire: str, limit: int
    ) -> None:
        come = [NOON - timedelta(minutes=age) for age in sorted(ages, reverse=True)]
        found = planned(come, misfire=misfire, misfire_limit=limit)
        assert sorted([*found.run, *(instant for instant, _ in found.missed)]) == come
        assert found.run == sorted(found.run)


class TestCome:
    def test_the_instants_up_to_now_come_the_first_one_included(self) -> None:
        found = misfire.come(definition(), NOON - 2 * HOUR, NOON + HOUR / 2)
        assert found == [NOON - 2 * HOUR, NOON - HOUR, NOON]

    def test_a_long_absence_comes_in_parts_while_all_of_a_part_is_too_old(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(misfire, "MISSED_AT_ONCE", 5)
        first = NOON - 100 * HOUR
        assert misfire.come(definition(), first, NOON) == [first + HOUR * n for n in range(5)]
        # The newest thirteen are within the catch-up window of twelve hours: they come at once.
        first = NOON - 12 * HOUR
        assert len(misfire.come(definition(), first, NOON)) == 13

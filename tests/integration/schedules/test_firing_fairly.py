"""Firing is fair: a turn does a bounded amount of work, requests start one run at most, and no
account makes another wait.
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from tests import factories
from tests.waiting import PATIENCE
from xalen_batch import db, ids
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Caller
from xalen_batch.batches import batches
from xalen_batch.broker import Job, Message
from xalen_batch.errors import OverLimit, TooManyRequests, Unavailable
from xalen_batch.models import Batch, Schedule, ScheduleRun
from xalen_batch.schedules import due, fire, manual, misfire, runs, schedules, sources
from xalen_batch.schedules.rotation import DueSchedule
from xalen_batch.schedules.sources import NotReady
from xalen_batch.schedules.turn import STARTS_AT_ONCE, Turn
from xalen_batch.states import RunState

pytestmark = pytest.mark.usefixtures("database")
Configure = Callable[..., None]
DAY = timedelta(days=1)


@pytest.fixture
def caller(database: str) -> Caller:
    return account()


def account() -> Caller:
    with db.transaction() as session:
        return factories.caller(session)


def made(caller: Caller, **fields: Any) -> UUID:
    """A schedule over a file with one line, which fires at night."""
    with db.transaction() as session:
        if not {"source", "inbox"} & set(fields):
            file = factories.input_file(session, caller, [factories.chat_line("a")])
            fields.setdefault("input_file_id", ids.render("file", file.id))
        return factories.schedule(session, caller, **{"overlap": "allow"} | fields).id


def pile_up(schedule_id: UUID, number: int) -> None:
    """Runs that wait, of nights that have passed."""
    now = datetime.now(UTC).replace(microsecond=0)
    with db.transaction() as session:
        schedule = session.get_one(Schedule, schedule_id)
        for night in range(number):
            values = {
                "id": ids.new(),
                "schedule_id": schedule_id,
                "scheduled_for": now - DAY * (night + 1),
                "trigger": "backfill",
            }
            session.add(ScheduleRun(**values, state="waiting", definition=schedule.definition))


def come_due(schedule_id: UUID) -> None:
    """Make an instant of the schedule due now."""
    with db.transaction() as session:
        now = datetime.now(UTC).replace(second=0, microsecond=0)
        fields = {"cron": f"{now.minute} {now.hour} * * *", "timezone": "UTC"}
        schedule = session.get_one(Schedule, schedule_id)
        schedule.definition = schedule.definition | fields
        schedule.next_fire_at = now


def counts(schedule_id: UUID) -> dict[str, int]:
    with db.transaction() as session:
        rows = (
            select(ScheduleRun.state, func.count())
            .where(ScheduleRun.schedule_id == schedule_id)
            .group_by(ScheduleRun.state)
        )
        return dict(session.execute(rows).all())


def locked(schedule_id: UUID, act: Callable[[Any, Schedule], Any]) -> Any:
    with db.transaction() as session:
        return act(session, session.get_one(Schedule, schedule_id, with_for_update=True))


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[UUID]:
    """The account of each attempt at making a batch."""
    found: list[UUID] = []
    admit = quotas.admit_batch

    def admit_batch(session: Any, owner: Any) -> None:
        found.append(owner.account_id)
        admit(session, owner)

    monkeypatch.setattr(quotas, "admit_batch", admit_batch)
    return found


class TestATurn:
    def test_it_starts_a_few_runs_and_the_next_turns_the_rest(self, caller: Caller) -> None:
        id = made(caller)
        pile_up(id, 2 * STARTS_AT_ONCE + 3)
        turn = Turn()
        with db.transaction() as session:
            [one] = due.read(session)
            assert fire._advance(session, one, turn)
        assert counts(id) == {"running": STARTS_AT_ONCE, "waiting": STARTS_AT_ONCE + 3}
        assert turn.has_more
        fire.run()
        assert counts(id) == {"running": 2 * STARTS_AT_ONCE + 3}

    def test_the_first_refusal_by_a_quota_ends_the_accounts_turn(
        self, caller: Caller, configure: Configure, attempts: list[UUID]
    ) -> None:
        configure(quota_open_batches=0)
        for _ in range(3):
            pile_up(made(caller), 20)
        fire.run()
        # batches.create would ask again, had the first been let through.
        assert len(attempts) == 1
        with db.transaction() as session:
            told = session.scalars(
                select(ScheduleRun.reason).where(ScheduleRun.reason.is_not(None))
            ).all()
        # Runs of the same turn get the reason without an attempt of their own.
        assert set(told) == {"open_batches_limit"}
        assert len(told) == STARTS_AT_ONCE

    def test_instants_that_come_while_a_quota_is_full_are_recorded_and_not_missed(
        self, caller: Caller, configure: Configure, attempts: list[UUID]
    ) -> None:
        configure(quota_open_batches=0)
        first, second = made(caller), made(caller)
        pile_up(first, 20)
        come_due(second)
        fire.run()
        assert counts(second) == {"waiting": 1}
        assert len(attempts) == 1

    def test_runs_that_wait_for_their_source_keep_no_other_from_being_tried(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        id = made(caller, source={"prefix": "exports"}, catch_up_window="30d")
        pile_up(id, 3 * STARTS_AT_ONCE)
        with db.transaction() as session:
            session.execute(
                update(ScheduleRun).values(scheduled_for=ScheduleRun.scheduled_for + 20 * DAY)
            )
        tried: list[Any] = []

        def find(session: Any, schedule: Any, source: Any, moment: Any) -> Any:
            tried.append(moment)
            raise NotReady("not yet")

        monkeypatch.setattr(sources, "find", find)
        now = datetime.now(UTC)
        for second in range(3):
            with db.transaction() as session:
                schedule = session.get_one(Schedule, id, with_for_update=True)
                unended = runs.unended(session, schedule)
                fire.start_waiting(
                    session, schedule, unended, now + timedelta(seconds=second), Turn()
                )
        assert len(set(tried)) == len(tried) == 3 * STARTS_AT_ONCE

    def test_many_runs_that_end_at_once_are_ended_some_at_a_time_and_none_is_taken_for_running(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runs, "ENDED_AT_ONCE", 2)
        id = made(caller)
        pile_up(id, 5)
        fire.run()
        with db.transaction() as session:
            session.execute(update(Batch).values(status="completed", total=1, completed=1))
            schedule = session.get_one(Schedule, id, with_for_update=True)
            assert runs.unended(session, schedule) == []
        assert counts(id) == {"succeeded": 2, "running": 3}


class TestAccounts:
    def test_a_schedule_that_comes_due_in_the_middle_of_anothers_thousand_is_next_but_one(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        many = [made(caller) for _ in range(12)]
        for id in many:
            come_due(id)
        other = made(account())
        order: list[UUID] = []
        advance = fire._advance

        def watched(session: Any, one: DueSchedule, turn: Turn) -> bool:
            order.append(one.id)
            if len(order) == 3:
                come_due(other)
            return advance(session, one, turn)

        monkeypatch.setattr(fire, "_advance", watched)
        monkeypatch.setattr("xalen_batch.schedules.rotation.READ_EVERY", 0.0)
        fire.run()
        assert order.index(other) in (3, 4)
        assert set(many) | {other} == set(order)

    def test_a_worker_passes_over_the_account_that_another_is_firing(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held, others = made(caller), made(account())
        for id in (held, others):
            come_due(id)
        holding, go_on = threading.Event(), threading.Event()
        create = batches.create

        def hold(session: Any, owner: Any, **options: Any) -> Batch:
            if options["run"].schedule_id == held:
                holding.set()
                assert go_on.wait(timeout=PATIENCE)
            return create(session, owner, **options)

        monkeypatch.setattr(batches, "create", hold)
        one = threading.Thread(target=fire.run)
        one.start()
        assert holding.wait(timeout=PATIENCE)
        fire.run()
        assert (counts(held), counts(others)) == ({}, {"running": 1})
        go_on.set()
        one.join(timeout=PATIENCE)
        assert counts(held) == {"running": 1}


class TestRequests:
    def test_a_manual_run_starts_itself_alone_whatever_waits(
        self, caller: Caller, attempts: list[UUID]
    ) -> None:
        id = made(caller)
        pile_up(id, 30)
        run = locked(id, manual.run_now)
        assert run.state == RunState.RUNNING
        assert counts(id) == {"running": 1, "waiting": 30}
        # Once before anything is assigned to it, once where the batch is made.
        assert len(attempts) == 2

    def test_a_backfill_starts_one_run_and_hints_at_the_others(self, caller: Caller) -> None:
        id, now = made(caller), datetime.now(UTC)
        with db.transaction() as session:
            schedule = session.get_one(Schedule, id, with_for_update=True)
            found = manual.backfill(session, schedule, now - 5 * DAY, now)
            assert Message(Job.FIRE, None) in session.info["messages"]
        assert len(found) == 5
        assert counts(id) == {"running": 1, "waiting": 4}

    @pytest.mark.parametrize("limit", [{"quota_waiting_runs": 102}, {"schedule_waiting_runs": 102}])
    def test_more_runs_than_may_wait_are_refused_and_none_of_them_is_recorded(
        self, caller: Caller, configure: Configure, limit: dict[str, int]
    ) -> None:
        configure(quota_open_batches=0, **limit)
        id, now = made(caller), datetime.now(UTC)
        pile_up(id, 100)
        with db.transaction() as session:
            session.execute(
                update(ScheduleRun).values(scheduled_for=ScheduleRun.scheduled_for - 100 * DAY)
            )
        with pytest.raises(TooManyRequests) as refused:
            locked(
                id, lambda session, schedule: manual.backfill(session, schedule, now - 5 * DAY, now)
            )
        assert refused.value.code == "waiting_runs_limit"
        assert "has 100" in refused.value.message
        for _ in range(2):
            locked(id, manual.run_now)
        with pytest.raises(TooManyRequests):
            locked(id, manual.run_now)
        assert counts(id) == {"waiting": 102}

    def test_a_backfill_of_more_runs_than_may_ever_wait_is_not_to_be_tried_again(
        self, caller: Caller, configure: Configure
    ) -> None:
        configure(quota_open_batches=0, quota_waiting_runs=4)
        id, now = made(caller), datetime.now(UTC)
        with pytest.raises(OverLimit) as refused:
            locked(
                id, lambda session, schedule: manual.backfill(session, schedule, now - 5 * DAY, now)
            )
        assert (refused.value.code, refused.value.should_retry, refused.value.retry_after) == (
            "waiting_runs_limit",
            False,
            None,
        )
        assert "more than the limit itself" in refused.value.message

    def test_an_instant_beyond_the_cap_is_skipped_with_the_reason_and_can_be_backfilled(
        self, caller: Caller, configure: Configure
    ) -> None:
        configure(quota_open_batches=0, quota_waiting_runs=0)
        id = made(caller)
        come_due(id)
        fire.run()
        with db.transaction() as session:
            run = session.scalars(select(ScheduleRun)).one()
        assert (run.state, run.reason) == ("skipped", "waiting_runs_limit")
        assert "The account's limit is 0 schedule runs that wait to start" in (run.message or "")
        configure(quota_open_batches=1, quota_waiting_runs=1)
        now = datetime.now(UTC)
        assert (
            len(
                locked(
                    id,
                    lambda session, schedule: manual.backfill(
                        session, schedule, run.scheduled_for, now
                    ),
                )
            )
            == 1
        )
        assert counts(id) == {"running": 1}

    def test_an_absence_too_long_for_a_request_is_left_to_the_firing(
        self, caller: Caller, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(misfire, "MISSED_AT_ONCE", 5)
        monkeypatch.setattr(fire, "PASSES_OF_A_REQUEST", 2)
        id = made(caller, cron="0 * * * *")
        with db.transaction() as session:
            schedule = session.get_one(Schedule, id)
            schedule.next_fire_at = (datetime.now(UTC) - 3 * DAY).replace(
                minute=0, second=0, microsecond=0
            )
            schedule.updated_at = schedule.next_fire_at
        with pytest.raises(Unavailable, match="Send the request again"):
            locked(id, lambda session, schedule: schedules.pause(session, schedule, None))
        fire.run()
        locked(id, lambda session, schedule: schedules.pause(session, schedule, None))

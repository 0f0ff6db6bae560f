"""Schedules under concurrent changes, and with a failure in every attempt."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from tests import factories
from tests.integration.clock import Clock
from tests.integration.schedules import firing
from tests.integration.schedules.firing import (
    DAY,
    NIGHT,
    NOON,
    batches_of,
    change,
    end_batch,
    get,
    made,
    runs_of,
    states,
)
from tests.waiting import PATIENCE, wait_until
from xalen_batch import db, files, ids
from xalen_batch.accounts.accounts import Owner
from xalen_batch.batches import batches
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Batch, InboxRequest, Schedule
from xalen_batch.pipeline import recover
from xalen_batch.schedules import due, fire, inbox, manual, schedules
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.sources import NotReady
from xalen_batch.states import BatchStatus

pytestmark = pytest.mark.usefixtures("database")
clock, owner = firing.clock, firing.owner

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def edit(owner: Owner, schedule_id: UUID, **fields: Any) -> None:
    def act(session: Any, schedule: Schedule) -> None:
        schedules.change(
            session, owner, schedule, Definition.model_validate(schedule.definition | fields)
        )

    change(schedule_id, act)


def is_due() -> bool:
    with db.transaction() as session:
        return due.is_any(session)


def delayed(owner: Owner) -> tuple[UUID, timedelta]:
    """A schedule whose jitter is more than a minute, and its delay."""
    while True:
        id = made(owner, jitter=900)
        delay = Definition.model_validate(get(id).definition).delay(id)
        if delay > 2 * MINUTE:
            return id, delay


class TestJitter:
    @pytest.mark.parametrize("fields", [{"name": "renamed"}, {"jitter": 0}])
    def test_an_edit_between_an_instant_and_its_delayed_fire_loses_no_night(
        self, clock: Clock, owner: Owner, fields: dict[str, Any]
    ) -> None:
        id, delay = delayed(owner)
        clock.set(NIGHT + MINUTE)
        edit(owner, id, **fields)
        clock.set(NIGHT + delay)
        fire.run()
        assert [(run.scheduled_for, run.state) for run in runs_of(id)] == [(NIGHT, "running")]

    def test_more_jitter_after_an_instant_has_fired_fires_it_no_second_time(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, overlap="allow")
        clock.set(NIGHT)
        fire.run()
        edit(owner, id, jitter=900)
        clock.set(NIGHT + 16 * MINUTE)
        fire.run()
        assert len(runs_of(id)) == len(batches_of(id)) == 1
        assert (get(id).next_fire_at or NOON) >= NIGHT + DAY


class TestZoneRules:
    @pytest.mark.parametrize("moved", [HOUR, timedelta(minutes=30), -HOUR])
    def test_a_night_whose_zone_has_new_rules_is_run_once(
        self, clock: Clock, owner: Owner, moved: timedelta
    ) -> None:
        """`next_fire_at` was computed with rules that are no longer those of the zone."""
        id = made(owner, overlap="allow", catch_up_window="7d")
        clock.set(NIGHT)
        fire.run()
        with db.transaction() as session:
            # As the old rules had it, last night and tonight.
            session.execute(
                text("UPDATE schedules SET next_fire_at = next_fire_at + :moved"), {"moved": moved}
            )
            session.execute(
                text("UPDATE schedule_runs SET scheduled_for = scheduled_for + :moved"),
                {"moved": moved},
            )
        for at in (NIGHT + DAY - HOUR, NIGHT + DAY, NIGHT + DAY + HOUR, NIGHT + DAY + 2 * HOUR):
            clock.set(at)
            fire.run()
        assert [run.scheduled_for for run in runs_of(id)] == [NIGHT + moved, NIGHT + DAY]
        assert get(id).next_fire_at == NIGHT + 2 * DAY


class TestPoison:
    def test_one_whose_statement_takes_too_long_holds_up_no_other(
        self, clock: Clock, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slow, *others = [made(owner) for _ in range(6)]
        clock.set(NIGHT)
        create = batches.create

        def take_too_long(session: Any, *arguments: Any, **options: Any) -> Batch:
            if options["run"].schedule_id == slow:
                session.execute(text("SET LOCAL statement_timeout = 10"))
                session.execute(text("SELECT pg_sleep(1)"))
            return create(session, *arguments, **options)

        monkeypatch.setattr(batches, "create", take_too_long)
        fire.run()
        assert [states(id) for id in others] == [["running"]] * 5
        assert states(slow) == []

    def test_a_database_that_is_gone_is_asked_for_one_schedule_only(
        self, clock: Clock, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made(owner), made(owner)
        clock.set(NIGHT)
        asked = []

        def gone(*arguments: Any) -> None:
            asked.append(arguments)
            raise OperationalError("", {}, Exception())

        monkeypatch.setattr(fire, "_advance", gone)
        monkeypatch.setattr(db, "ping", lambda: gone())
        with pytest.raises(OperationalError):
            fire.run()
        assert len(asked) == 2

    def test_a_bug_that_happens_every_time_fails_the_run_and_not_every_night_after_it(
        self, clock: Clock, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        id = made(owner, pause_on_failure=2)

        def crash(*_: Any, **__: Any) -> Batch:
            raise RuntimeError("a bug")

        monkeypatch.setattr(batches, "create", crash)
        for days in range(3):
            clock.set(NIGHT + DAY * days)
            fire.run()
        assert [(run.state, run.reason) for run in runs_of(id)] == [
            ("failed", "internal_error")
        ] * 2
        assert (get(id).status, get(id).run_counts) == ("paused", {"failed": 2})
        assert "a bug" not in (runs_of(id)[0].message or "")


class TestBusy:
    def test_a_run_that_waits_for_another_is_not_looked_at_until_that_has_ended(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, overlap="buffer_one")
        for night in (NIGHT, NIGHT + DAY):
            clock.set(night)
            fire.run()
        assert states(id) == ["running", "waiting"]
        assert not is_due()
        end_batch(id)
        assert is_due()
        fire.run()
        assert states(id) == ["succeeded", "running"]

    def test_runs_that_a_pause_holds_are_not_looked_at_until_it_is_resumed(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, misfire="all", catch_up_window="7d", pause_on_failure=1)
        clock.set(NIGHT + 2 * DAY + HOUR)
        fire.run()
        end_batch(id, BatchStatus.FAILED)
        fire.run()
        assert (get(id).status, states(id)) == ("paused", ["failed", "waiting", "waiting"])
        assert not is_due()
        change(id, schedules.resume)
        assert is_due()
        fire.run()
        assert states(id) == ["failed", "running", "waiting"]

    def test_a_run_by_hand_goes_past_those_that_a_pause_holds(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, misfire="all", catch_up_window="7d", overlap="buffer_one")
        clock.set(NIGHT + 2 * DAY + HOUR)
        fire.run()
        change(id, lambda session, schedule: schedules.pause(session, schedule, None))
        end_batch(id)
        fire.run()
        assert states(id) == ["succeeded", "waiting", "waiting"]
        assert change(id, manual.run_now).state == "running"


class TestAbsence:
    def test_instants_that_came_before_failures_paused_it_are_on_record(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, pause_on_failure=1)
        clock.set(NIGHT)
        fire.run()
        end_batch(id, BatchStatus.FAILED)
        clock.set(NIGHT + 2 * DAY + HOUR)
        fire.run()
        assert get(id).status == "paused"
        assert [run.scheduled_for for run in runs_of(id)] == [NIGHT, NIGHT + DAY, NIGHT + 2 * DAY]
        assert states(id)[0] == "failed"

    @pytest.mark.parametrize("by", ["edit", "pause"])
    def test_what_is_changed_after_a_long_absence_is_brought_up_to_date_first(
        self, clock: Clock, owner: Owner, by: str
    ) -> None:
        id = made(owner, cron="*/15 * * * *")
        clock.set(NOON + 30 * DAY + MINUTE)
        if by == "edit":
            edit(owner, id, name="renamed")
        else:
            change(id, lambda session, schedule: schedules.pause(session, schedule, None))
        assert len(runs_of(id)) == 30 * 96
        assert states(id)[-1] == "running"


def file_of(schedule_id: UUID) -> str:
    with db.transaction() as session:
        return ids.render(
            "file",
            session.scalars(select(Schedule.file_id).where(Schedule.id == schedule_id)).one()
            or UUID(int=0),
        )


def other_file(owner: Owner) -> str:
    with db.transaction() as session:
        return ids.render(
            "file", factories.input_file(session, owner, [factories.chat_line("b")]).id
        )  # type: ignore[arg-type]


class TestFiles:
    @pytest.fixture
    def waiting(self, clock: Clock, owner: Owner) -> tuple[UUID, str]:
        """A schedule whose file was changed while a run waits, and that run's file."""
        id = made(owner, overlap="buffer_one")
        for night in (NIGHT, NIGHT + DAY):
            clock.set(night)
            fire.run()
        file = file_of(id)
        edit(owner, id, input_file_id=other_file(owner))
        end_batch(id)
        return id, file

    def test_the_file_of_a_run_that_waits_cannot_be_deleted(
        self, waiting: tuple[UUID, str], owner: Owner
    ) -> None:
        id, file = waiting
        with db.transaction() as session, pytest.raises(InvalidRequest, match="run_") as refused:
            files.delete(session, owner, file)
        assert refused.value.code == "file_in_use"
        fire.run()
        end_batch(id)
        fire.run()
        assert states(id) == ["succeeded", "succeeded"]
        with db.transaction() as session:
            assert files.delete(session, owner, file).deleted_at

    def test_the_file_of_a_run_that_waits_does_not_expire(
        self, waiting: tuple[UUID, str], clock: Clock, owner: Owner
    ) -> None:
        id, _ = waiting
        clock.set(NIGHT + 90 * DAY)
        recover.tick()
        fire.run()
        assert states(id)[:2] == ["succeeded", "running"]

    def test_a_template_stays_until_the_file_of_a_run_is_put_together(
        self, clock: Clock, owner: Owner
    ) -> None:
        template, other = other_file(owner), other_file(owner)
        id = made(owner, template_file_id=template)
        clock.set(NIGHT)
        fire.run()
        edit(owner, id, template_file_id=other)
        with db.transaction() as session, pytest.raises(InvalidRequest, match="run_"):
            files.delete(session, owner, template)


def lines_of(schedule_id: UUID) -> list[tuple[str, UUID | None]]:
    with db.transaction() as session:
        rows = (
            select(InboxRequest.custom_id, InboxRequest.run_id)
            .where(InboxRequest.schedule_id == schedule_id)
            .order_by(InboxRequest.id)
        )
        return [(custom_id, run_id) for custom_id, run_id in session.execute(rows)]


def edit_by_id(owner: Owner, schedule_id: UUID, **fields: Any) -> None:
    """Edit a schedule as the API does."""
    with db.transaction() as session:
        schedule = schedules.lock(session, owner, ids.render("sched", schedule_id))
        schedules.change(
            session, owner, schedule, Definition.model_validate(schedule.definition | fields)
        )


def wait_for_one_that_waits() -> None:
    """Wait until a connection waits for another's lock."""
    with db.engine().connect() as connection:
        wait_until(
            lambda: connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))
        )


class TestInbox:
    def test_a_run_cancelled_for_the_next_before_it_was_put_together_loses_no_request(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, inbox={}, overlap="cancel_previous")

        def add(*lines: tuple[str, bytes]) -> None:
            change(id, lambda session, schedule: inbox.add(session, schedule, lines))

        add(("a", b'{"n":1}'), ("b", b'{"n":1}'))
        clock.set(NIGHT)
        fire.run()
        add(("b", b'{"n":2}'), ("c", b'{"n":2}'))
        clock.set(NIGHT + DAY)
        fire.run()
        first, second = runs_of(id)
        assert [batch.status for batch in batches_of(id)] == ["cancelling", "validating"]
        assert sorted(custom_id for custom_id, run_id in lines_of(id) if run_id == second.id) == [
            "a",
            "b",
            "c",
        ]
        assert first.id != second.id

    def test_a_newer_request_that_arrives_meanwhile_counts_instead(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, inbox={}, overlap="cancel_previous")
        change(
            id,
            lambda session, schedule: inbox.add(
                session, schedule, [("a", b'{"n":1}'), ("b", b'{"n":1}')]
            ),
        )
        clock.set(NIGHT)
        fire.run()
        clock.set(NIGHT + DAY)
        with ThreadPoolExecutor() as pool:
            with db.transaction() as session:
                schedule = schedules.keep(session, owner, ids.render("sched", id))
                inbox.add(session, schedule, [("a", b'{"n":2}')])
                firing = pool.submit(fire.run)
                wait_for_one_that_waits()
            firing.result(timeout=PATIENCE)
        _, second = runs_of(id)
        assert second.state == "running"
        assert sorted(lines_of(id)) == [("a", second.id), ("b", second.id)]
        assert b"".join(inbox.chunks(second.id)) == b'{"n":1}\n{"n":2}\n'

    def test_requests_that_arrive_while_the_inbox_is_taken_away_wait_for_each_other_in_one_order(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, inbox={}, overlap="allow")
        change(id, lambda session, schedule: inbox.add(session, schedule, [("a", b"{}")]))
        file = other_file(owner)
        clock.set(NIGHT)
        with ThreadPoolExecutor() as pool:
            with db.transaction() as session:
                schedule = schedules.keep(session, owner, ids.render("sched", id))
                changing = pool.submit(edit_by_id, owner, id, inbox=None, input_file_id=file)
                wait_for_one_that_waits()
                assert inbox.add(session, schedule, [("a", b"{}")]).known == 1
            changing.result(timeout=PATIENCE)
        assert states(id) == ["running"]
        assert get(id).definition["input_file_id"] == file


class TestPatience:
    @pytest.mark.parametrize("trouble", [OSError("gone"), NotReady("no marker")])
    def test_a_run_waits_for_its_source_from_when_the_run_before_it_let_it(
        self, clock: Clock, owner: Owner, monkeypatch: pytest.MonkeyPatch, trouble: Exception
    ) -> None:
        id = made(owner, overlap="buffer_one")
        clock.set(NIGHT)
        fire.run()
        edit(owner, id, input_file_id=None, source={"prefix": "exports"})
        clock.set(NIGHT + DAY)
        fire.run()
        clock.set(NIGHT + DAY + 20 * HOUR)
        end_batch(id)

        def find(*_: Any) -> None:
            raise trouble

        monkeypatch.setattr("xalen_batch.schedules.sources.find", find)
        fire.run()
        assert states(id) == ["succeeded", "waiting"]
        clock.set(NIGHT + DAY + 31 * HOUR)
        fire.run()
        assert states(id)[1] == "waiting"
        clock.set(NIGHT + DAY + 33 * HOUR)
        fire.run()
        assert states(id)[1] in ("failed", "skipped")

    def test_a_run_that_a_backfill_takes_up_waits_for_its_source_from_then_on(
        self, clock: Clock, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        id = made(owner, source={"prefix": "exports"}, misfire="none")
        clock.set(NIGHT + HOUR)
        fire.run()
        assert states(id) == ["missed"]

        def find(*_: Any) -> None:
            raise OSError("gone")

        monkeypatch.setattr("xalen_batch.schedules.sources.find", find)
        clock.set(NIGHT + 20 * HOUR)
        change(
            id, lambda session, schedule: manual.backfill(session, schedule, NIGHT, NIGHT + HOUR)
        )
        assert states(id) == ["waiting"]


class TestExecutionWindow:
    def test_a_schedule_whose_jitter_takes_it_out_of_its_hours_is_refused(
        self, clock: Clock, owner: Owner
    ) -> None:
        hours = {"start": "22:00", "end": "04:35"}
        with pytest.raises(InvalidRequest, match="is not open before"):
            made(
                owner, cron="30 4 * * *", execution_window=hours, completion_window="2h", jitter=900
            )
        assert made(
            owner, cron="30 4 * * *", execution_window=hours, completion_window="2h", jitter=200
        )


class TestStorage:
    def test_storage_that_stays_away_fails_the_run_and_is_told_once(
        self, clock: Clock, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        id = made(owner, source={"prefix": "exports"})
        told = []

        def away(*_: Any) -> None:
            raise OSError("gone")

        monkeypatch.setattr("xalen_batch.schedules.sources.find", away)
        monkeypatch.setattr(
            "xalen_batch.schedules.start.logger.warning", lambda event, **_: told.append(event)
        )
        for seconds in range(3):
            clock.set(NIGHT + timedelta(seconds=seconds))
            fire.run()
        assert (states(id), told) == (["waiting"], ["storage.unreachable"])
        clock.set(NIGHT + 13 * HOUR)
        fire.run()
        assert [(run.state, run.reason) for run in runs_of(id)] == [
            ("failed", "storage_unreachable")
        ]

"""Firing: one run for every instant, despite clock changes, crashes and concurrent processes."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, text

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
from tests.waiting import PATIENCE
from xalen_batch import db, ids, storage
from xalen_batch.accounts.accounts import Owner
from xalen_batch.batches import batches
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Batch, File, Schedule
from xalen_batch.pipeline import validate
from xalen_batch.schedules import due, fire, manual, schedules, sources
from xalen_batch.schedules.definition import Definition, Source
from xalen_batch.states import BatchStatus

pytestmark = pytest.mark.usefixtures("database")
clock, owner = firing.clock, firing.owner


class TestOnTime:
    def test_an_instant_makes_a_batch_and_moves_the_next_fire_on(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, metadata={"team": "search"}, completion_window="6h")
        assert get(id).next_fire_at == NIGHT
        clock.set(NIGHT - timedelta(seconds=1))
        fire.run()
        assert runs_of(id) == []
        clock.set(NIGHT + timedelta(seconds=2))
        fire.run()
        [run] = runs_of(id)
        [batch] = batches_of(id)
        assert (run.scheduled_for, run.trigger, run.state, batch.run_id) == (
            NIGHT,
            "schedule",
            "running",
            run.id,
        )
        assert 2 <= (run.lag or 0) < 4
        assert (batch.status, batch.meta, batch.completion_window) == (
            "validating",
            {"team": "search"},
            "6h",
        )
        assert batch.expires_at - clock.now() < timedelta(hours=6)
        assert get(id).next_fire_at == NIGHT + DAY

    def test_looking_again_fires_nothing_twice(self, clock: Clock, owner: Owner) -> None:
        id = made(owner)
        clock.set(NIGHT)
        for _ in range(3):
            fire.run()
        assert len(batches_of(id)) == 1

    def test_a_clock_that_jumps_back_fires_nothing_twice_and_one_that_jumps_on_loses_nothing(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, cron="0 * * * *", overlap="allow")
        for hours in (1, 2, 1, 3, 2, 4):
            clock.set(NOON + timedelta(hours=hours))
            fire.run()
        assert [run.scheduled_for for run in runs_of(id)] == [
            NOON + timedelta(hours=n) for n in (1, 2, 3, 4)
        ]
        assert len(batches_of(id)) == 4

    def test_many_at_once_fire_each_instant_once(self, clock: Clock, owner: Owner) -> None:
        schedules = [made(owner, cron="*/5 * * * *", overlap="allow") for _ in range(15)]
        for step in range(1, 5):
            clock.set(NOON + timedelta(minutes=5 * step, seconds=1))
            at_once = threading.Barrier(6)
            failures: list[BaseException] = []

            def tick(
                at_once: threading.Barrier = at_once, failures: list[BaseException] = failures
            ) -> None:
                try:
                    at_once.wait(timeout=PATIENCE)
                    fire.run()
                except BaseException as error:
                    failures.append(error)

            tickers = [threading.Thread(target=tick) for _ in range(6)]
            for ticker in tickers:
                ticker.start()
            for ticker in tickers:
                ticker.join(timeout=PATIENCE)
            assert failures == []
        for id in schedules:
            assert [run.scheduled_for for run in runs_of(id)] == [
                NOON + timedelta(minutes=5 * n) for n in range(1, 5)
            ]
            assert len(batches_of(id)) == 4

    def test_jitter_is_the_schedules_own_and_stays(self, clock: Clock, owner: Owner) -> None:
        id = made(owner, jitter=900)
        delay = Definition.model_validate(get(id).definition).delay(id)
        assert timedelta() <= delay <= timedelta(minutes=15)
        assert get(id).next_fire_at == NIGHT + delay
        clock.set(NIGHT + delay)
        fire.run()
        assert [run.scheduled_for for run in runs_of(id)] == [NIGHT]
        assert get(id).next_fire_at == NIGHT + DAY + delay

    def test_it_starts_and_ends_when_it_is_told_to(self, clock: Clock, owner: Owner) -> None:
        id = made(
            owner, starts_at="2026-11-26T00:00:00", ends_at="2026-11-27T02:30:00", overlap="allow"
        )
        for days in range(5):
            clock.set(NIGHT + DAY * days)
            fire.run()
        assert [run.scheduled_for for run in runs_of(id)] == [NIGHT + DAY]
        assert (get(id).status, get(id).next_fire_at) == ("ended", None)


class TestClockChanges:
    @pytest.mark.parametrize(
        ("cron", "day", "expected"),
        [
            ("30 2 * * *", datetime(2026, 3, 28, 23, tzinfo=UTC), 1),
            ("30 2 * * *", datetime(2026, 10, 24, 22, tzinfo=UTC), 1),
            ("*/30 2 * * *", datetime(2026, 3, 28, 23, tzinfo=UTC), 1),
            ("*/30 2 * * *", datetime(2026, 10, 24, 22, tzinfo=UTC), 2),
            ("0 * * * *", datetime(2026, 3, 28, 23, tzinfo=UTC), 23),
            ("0 * * * *", datetime(2026, 10, 24, 22, tzinfo=UTC), 25),
        ],
    )
    def test_a_day_of_a_clock_change_has_the_runs_it_should(
        self, clock: Clock, owner: Owner, cron: str, day: datetime, expected: int
    ) -> None:
        clock.set(day - timedelta(seconds=1))
        id = made(owner, cron=cron, overlap="allow")
        # 23 or 25 hours from midnight to midnight in Berlin.
        length = 23 if day.month == 3 else 25
        for quarter in range(4 * length):
            clock.set(day + timedelta(minutes=15 * quarter, seconds=1))
            fire.run()
        assert len(runs_of(id)) == len(batches_of(id)) == expected


class TestLate:
    def test_a_night_that_nobody_fired_is_made_up_for(self, clock: Clock, owner: Owner) -> None:
        id = made(owner)
        clock.set(NIGHT + timedelta(hours=3))
        fire.run()
        assert states(id) == ["running"]

    def test_nights_that_are_over_are_recorded_as_missed_with_the_reason(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner)
        clock.set(NIGHT + DAY * 3 + timedelta(hours=1))
        fire.run()
        assert [(run.state, run.reason) for run in runs_of(id)] == [
            ("missed", "catch_up_window")
        ] * 3 + [("running", None)]
        assert all(run.message and run.ended_at for run in runs_of(id)[:3])
        assert get(id).run_counts == {"missed": 3}

    def test_none_is_made_up_for_when_none_is_wanted(self, clock: Clock, owner: Owner) -> None:
        id = made(owner, misfire="none")
        clock.set(NIGHT + timedelta(minutes=6))
        fire.run()
        assert [(run.state, run.reason) for run in runs_of(id)] == [("missed", "misfire_none")]
        assert get(id).next_fire_at == NIGHT + DAY

    def test_all_are_made_up_for_one_after_another(self, clock: Clock, owner: Owner) -> None:
        id = made(owner, misfire="all", catch_up_window="7d", misfire_limit=3)
        clock.set(NIGHT + DAY * 3 + timedelta(hours=1))
        fire.run()
        assert states(id) == ["missed", "running", "waiting", "waiting"]
        for _ in range(3):
            end_batch(id)
            fire.run()
        assert states(id) == ["missed", "succeeded", "succeeded", "succeeded"]
        assert [batch.run_id for batch in batches_of(id)] == [run.id for run in runs_of(id)[1:]]

    def test_a_month_of_absence_leaves_a_record_of_every_instant(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, cron="*/15 * * * *")
        clock.set(NOON + 30 * DAY + timedelta(minutes=1))
        for _ in range(5):
            fire.run()
        instants = [run.scheduled_for for run in runs_of(id)]
        assert instants == [NOON + timedelta(minutes=15) * n for n in range(1, 30 * 96 + 1)]
        assert states(id)[-1] == "running"
        assert get(id).run_counts == {"missed": len(instants) - 1}


class TestOverlap:
    def fire_twice(self, clock: Clock, owner: Owner, overlap: str) -> UUID:
        id = made(owner, overlap=overlap)
        for night in (NIGHT, NIGHT + DAY):
            clock.set(night)
            fire.run()
        return id

    def test_skip_leaves_the_new_run_out(self, clock: Clock, owner: Owner) -> None:
        id = self.fire_twice(clock, owner, "skip")
        assert [(run.state, run.reason) for run in runs_of(id)] == [
            ("running", None),
            ("skipped", "overlap"),
        ]
        end_batch(id)
        clock.set(NIGHT + 2 * DAY)
        fire.run()
        assert states(id) == ["succeeded", "skipped", "running"]

    def test_buffer_one_lets_one_wait_and_skips_the_next(self, clock: Clock, owner: Owner) -> None:
        id = self.fire_twice(clock, owner, "buffer_one")
        clock.set(NIGHT + 2 * DAY)
        fire.run()
        assert states(id) == ["running", "waiting", "skipped"]
        end_batch(id)
        fire.run()
        assert states(id) == ["succeeded", "running", "skipped"]

    def test_allow_runs_them_side_by_side(self, clock: Clock, owner: Owner) -> None:
        assert states(self.fire_twice(clock, owner, "allow")) == ["running", "running"]

    def test_cancel_previous_cancels_what_runs(self, clock: Clock, owner: Owner) -> None:
        id = self.fire_twice(clock, owner, "cancel_previous")
        assert [batch.status for batch in batches_of(id)] == ["cancelling", "validating"]
        with db.transaction() as session:
            assert session.get_one(Batch, batches_of(id)[0].id).move(session, BatchStatus.CANCELLED)
        fire.run()
        assert states(id) == ["cancelled", "running"]


class TestEnds:
    @pytest.mark.parametrize(
        ("to", "succeeded", "state", "reason"),
        [
            (BatchStatus.COMPLETED, 1, "succeeded", None),
            (BatchStatus.COMPLETED, 0, "failed", "no_line_succeeded"),
            (BatchStatus.EXPIRED, 0, "failed", "batch_expired"),
            (BatchStatus.FAILED, 0, "failed", "batch_failed"),
            (BatchStatus.CANCELLED, 1, "cancelled", "batch_cancelled"),
        ],
    )
    def test_a_run_ends_as_its_batch_did(
        self,
        clock: Clock,
        owner: Owner,
        to: BatchStatus,
        succeeded: int,
        state: str,
        reason: str | None,
    ) -> None:
        id = made(owner)
        clock.set(NIGHT)
        fire.run()
        end_batch(id, to, succeeded=succeeded)
        with db.transaction() as session:
            assert due.is_any(session)
        fire.run()
        [run] = runs_of(id)
        assert (run.state, run.reason) == (state, reason)
        assert get(id).run_counts == {state: 1}
        with db.transaction() as session:
            assert not due.is_any(session)

    def test_too_many_failures_in_a_row_pause_the_schedule(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, pause_on_failure=2)
        for days, to in enumerate(
            (BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.FAILED)
        ):
            assert get(id).status == "active"
            clock.set(NIGHT + DAY * days)
            fire.run()
            end_batch(id, to)
            fire.run()
        schedule = get(id)
        assert (schedule.status, schedule.failures, schedule.next_fire_at) == ("paused", 2, None)
        assert "pause_on_failure" in (schedule.pause_note or "")
        change(id, schedules.resume)
        assert (get(id).status, get(id).failures, get(id).next_fire_at) == (
            "active",
            0,
            NIGHT + 4 * DAY,
        )


class TestCrashes:
    def test_a_crash_in_the_middle_of_firing_leaves_nothing_and_the_next_look_fires(
        self, clock: Clock, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = made(owner), made(owner)
        clock.set(NIGHT)
        create = batches.create

        def crash_once(session: Any, *arguments: Any, **options: Any) -> Batch:
            batch = create(session, *arguments, **options)
            if options["run"].schedule_id == first:
                raise SystemExit
            return batch

        with monkeypatch.context() as patch:
            patch.setattr(batches, "create", crash_once)
            with pytest.raises(SystemExit):
                fire.run()
        assert (states(first), len(batches_of(first))) == ([], 0)
        fire.run()
        for id in (first, second):
            assert (states(id), len(batches_of(id))) == (["running"], 1)

    def test_storage_that_is_away_delays_a_run_and_loses_none(
        self, clock: Clock, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        id = made(owner, source={"prefix": "exports"}, endpoint=factories.CHAT)
        clock.set(NIGHT)
        with monkeypatch.context() as patch:
            patch.setattr("xalen_batch.schedules.sources.find", _away)
            fire.run()
        assert [(run.state, run.reason) for run in runs_of(id)] == [
            ("waiting", "storage_unreachable")
        ]
        fire.run()
        assert [(run.state, run.reason) for run in runs_of(id)] == [("skipped", "empty")]

    def test_a_file_whose_purpose_was_wrong_fails_the_run_and_not_the_schedule(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner)
        with db.transaction() as session:
            session.execute(text("UPDATE files SET deleted_at = now()"))
        clock.set(NIGHT)
        fire.run()
        [run] = runs_of(id)
        assert (run.state, get(id).next_fire_at) == ("failed", NIGHT + DAY)
        assert "there is no file" in (run.message or "")


def _away(*_: Any) -> None:
    raise OSError("gone")


class TestByHand:
    def test_a_manual_run_leaves_the_next_fire_alone(self, clock: Clock, owner: Owner) -> None:
        id = made(owner)
        run = change(id, manual.run_now)
        assert (run.trigger, run.state) == ("manual", "running")
        assert get(id).next_fire_at == NIGHT
        with pytest.raises(InvalidRequest, match="had not ended"):
            change(id, manual.run_now)
        assert states(id) == ["running"]

    def test_a_paused_schedule_fires_nothing_and_can_be_run_by_hand(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner)
        change(id, lambda session, schedule: schedules.pause(session, schedule, "migration"))
        clock.set(NIGHT)
        fire.run()
        assert states(id) == []
        assert change(id, manual.run_now).state == "running"
        assert (get(id).status, get(id).pause_note) == ("paused", "migration")

    def test_an_instant_that_came_before_a_pause_or_an_edit_is_fired_by_the_old_definition(
        self, clock: Clock, owner: Owner
    ) -> None:
        paused, edited = made(owner), made(owner)
        clock.set(NIGHT + timedelta(seconds=1))
        change(paused, lambda session, schedule: schedules.pause(session, schedule, None))
        change(
            edited,
            lambda session, schedule: schedules.change(session, owner, schedule, _later(schedule)),
        )
        assert states(paused) == states(edited) == ["running"]
        assert runs_of(edited)[0].definition["cron"] == "30 2 * * *"
        assert get(edited).next_fire_at == NIGHT + timedelta(hours=1)

    def test_a_backfill_runs_past_instants_one_at_a_time_and_takes_up_what_was_missed(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, misfire="none")
        clock.set(NIGHT + DAY + timedelta(hours=1))
        fire.run()
        assert states(id) == ["missed", "missed"]
        found = change(
            id,
            lambda session, schedule: manual.backfill(
                session, schedule, NIGHT - 2 * DAY, NIGHT + timedelta(hours=1)
            ),
        )
        assert [run.scheduled_for for run in found] == [NIGHT - 2 * DAY, NIGHT - DAY, NIGHT]
        assert states(id) == ["running", "waiting", "waiting", "missed"]
        for _ in range(3):
            end_batch(id)
            fire.run()
        assert states(id) == ["succeeded", "succeeded", "succeeded", "missed"]
        assert {run.trigger for run in runs_of(id)[:3]} == {"backfill"}
        assert (
            change(
                id,
                lambda session, schedule: manual.backfill(
                    session, schedule, NIGHT - 2 * DAY, NIGHT + DAY
                ),
            )
            == []
        )
        assert len(batches_of(id)) == 3

    def test_a_backfill_is_bounded_and_must_find_something(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, cron="0 * * * *")
        with pytest.raises(InvalidRequest, match="more than 100 instants"):
            change(
                id,
                lambda session, schedule: manual.backfill(session, schedule, NOON - 10 * DAY, NOON),
            )
        with pytest.raises(InvalidRequest, match="no instant"):
            change(
                id,
                lambda session, schedule: manual.backfill(
                    session, schedule, NOON + timedelta(minutes=1), NOON + DAY
                ),
            )

    def test_deleting_keeps_runs_and_batches_and_starts_nothing_more(
        self, clock: Clock, owner: Owner
    ) -> None:
        id = made(owner, overlap="buffer_one")
        for night in (NIGHT, NIGHT + DAY):
            clock.set(night)
            fire.run()
        with db.transaction() as session:
            schedules.delete(session, owner, ids.render("sched", id), discard_requests=False)
        assert [(run.state, run.reason) for run in runs_of(id)] == [
            ("running", None),
            ("skipped", "schedule_deleted"),
        ]
        end_batch(id)
        clock.set(NIGHT + 2 * DAY)
        fire.run()
        assert (states(id), len(batches_of(id))) == (["succeeded", "skipped"], 1)


def _later(schedule: Schedule) -> Definition:
    return Definition.model_validate(schedule.definition | {"cron": "30 3 * * *"})


class TestInbox:
    def test_an_empty_inbox_is_skipped_or_failed_as_wanted(
        self, clock: Clock, owner: Owner
    ) -> None:
        skipped, failed = made(owner, inbox={}), made(owner, inbox={"on_empty": "fail"})
        clock.set(NIGHT)
        fire.run()
        assert [(run.state, run.reason) for id in (skipped, failed) for run in runs_of(id)] == [
            ("skipped", "empty"),
            ("failed", "empty"),
        ]
        with db.transaction() as session:
            assert session.scalar(select(func.count()).select_from(File)) == 0


def test_a_schedule_that_has_ended_can_be_given_another_name_and_a_later_end(
    clock: Clock, owner: Owner
) -> None:
    id = made(owner, ends_at="2026-11-25T12:00:00")
    clock.set(NIGHT)
    fire.run()
    before = Definition.model_validate(get(id).definition)
    renamed = before.model_copy(update={"name": "last night"})
    change(id, lambda session, schedule: schedules.change(session, owner, schedule, renamed))
    assert (get(id).name, get(id).status) == ("last night", "ended")
    longer = Definition.model_validate(before.model_dump(mode="json") | {"ends_at": None})
    change(id, lambda session, schedule: schedules.change(session, owner, schedule, longer))
    assert (get(id).status, get(id).next_fire_at) == ("active", NIGHT + DAY)


def test_a_schedule_in_a_zone_that_is_gone_pauses_and_can_be_mended(
    clock: Clock, owner: Owner
) -> None:
    id, other = made(owner), made(owner)
    with db.transaction() as session:
        session.execute(
            text(
                "UPDATE schedules SET definition = jsonb_set(definition, '{timezone}',"
                " '\"Europe/Atlantis\"') WHERE id = :id"
            ),
            {"id": id},
        )
    clock.set(NIGHT)
    fire.run()
    assert (get(id).status, states(other)) == ("paused", ["running"])
    assert "Europe/Atlantis" in (get(id).pause_note or "")
    mended = Definition.model_validate(get(id).definition | {"timezone": "Europe/Athens"})
    change(id, lambda session, schedule: schedules.change(session, owner, schedule, mended))
    change(id, schedules.resume)
    assert get(id).next_fire_at == NIGHT + DAY - timedelta(hours=1)


def test_a_night_that_failed_is_run_again_with_its_own_dates(clock: Clock, owner: Owner) -> None:
    with db.transaction() as session:
        file = factories.input_file(session, owner, [factories.chat_line("of-{{scheduled_date}}")])  # type: ignore[arg-type]
    id = made(owner, template_file_id=ids.render("file", file.id))
    clock.set(NIGHT)
    fire.run()
    end_batch(id, BatchStatus.FAILED)
    clock.set(NIGHT + timedelta(hours=23))
    run = change(id, lambda session, schedule: manual.run_now(session, schedule, NIGHT))
    with db.transaction() as session:
        name = session.scalar(
            select(File.filename)
            .join(Batch, Batch.input_file_id == File.id)
            .where(Batch.run_id == run.id)
        )
    assert (run.trigger, run.as_of, name) == ("manual", NIGHT, "nightly-2026-11-25.jsonl")


def test_what_a_source_gave_to_a_batch_that_failed_validation_is_taken_again(
    clock: Clock, owner: Owner
) -> None:
    id = made(owner, source={"prefix": "in"})
    folder = storage.folder() / sources.location(owner, Source(prefix="in"))
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(
        factories.jsonl([factories.chat_line("a"), factories.chat_line("b")])
    )
    (folder / "d.jsonl").write_bytes(factories.jsonl([factories.chat_line("c")]) + b"{bad\n")
    clock.set(NIGHT)
    fire.run()
    [batch] = batches_of(id)
    validate.run(batch.id)
    [batch] = batches_of(id)
    assert batch.status == "failed"
    assert [
        (error["line"], error["message"].partition(": ")[0].rpartition("/")[2])
        for error in batch.errors or []
    ] == [(4, "d.jsonl:2")]
    (folder / "d.jsonl").unlink()
    clock.set(NIGHT + DAY)
    fire.run()
    assert states(id) == ["failed", "running"]
    assert [entry["path"].rpartition("/")[2] for entry in runs_of(id)[-1].manifest or []] == [
        "a.jsonl"
    ]


def test_of_several_late_instants_one_waits_where_one_may(
    clock: Clock, owner: Owner, configure: Callable[..., None]
) -> None:
    configure(schedule_min_interval=60)
    id = made(owner, cron="*/2 * * * *", overlap="buffer_one")
    clock.set(NOON + timedelta(minutes=2))
    fire.run()
    clock.set(NOON + timedelta(minutes=8, seconds=5))
    fire.run()
    assert states(id) == ["running", "missed", "missed", "waiting"]

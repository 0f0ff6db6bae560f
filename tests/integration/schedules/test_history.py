"""History: ended runs are forgotten after their retention, and nothing runs twice for it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from tests import factories
from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Caller
from xalen_batch.models import Batch, ConsumedObject, Schedule, ScheduleRun
from xalen_batch.pipeline import sweeps
from xalen_batch.schedules import history
from xalen_batch.states import BatchStatus, RunState

LIFE = timedelta(days=400)
NOW = datetime.now(UTC)
OLD, YOUNG = NOW - timedelta(days=500), NOW - timedelta(days=300)


@pytest.fixture
def caller(database: str) -> Caller:
    with db.transaction() as session:
        return factories.caller(session)


@pytest.fixture
def schedule(caller: Caller) -> Schedule:
    with db.transaction() as session:
        return factories.schedule(session, caller)


def a_run(
    schedule: Schedule, at: datetime, state: RunState = RunState.SUCCEEDED, **columns: object
) -> UUID:
    """A run that was created at that time, and ended then if its state says so."""
    id = UUID(int=(int(at.timestamp() * 1_000) << 80) | (ids.new().int & (1 << 80) - 1))
    is_open = state in (RunState.WAITING, RunState.RUNNING)
    with db.transaction() as session:
        session.add(
            ScheduleRun(
                id=id,
                schedule_id=schedule.id,
                scheduled_for=at,
                trigger="schedule",
                state=state.value,
                definition={"name": "nightly"},
                created_at=at,
                **{"ended_at": None if is_open else at, **columns},
            )
        )
    return id


def took(schedule: Schedule, run_id: UUID, path: str) -> None:
    with db.transaction() as session:
        session.add(ConsumedObject(schedule_id=schedule.id, path=path, version="1", run_id=run_id))


def left() -> set[UUID]:
    with db.transaction() as session:
        return set(session.scalars(select(ScheduleRun.id)))


def objects(session: Session) -> dict[str, UUID | None]:
    return dict(session.execute(select(ConsumedObject.path, ConsumedObject.run_id)).all())


def forget(life: timedelta = LIFE) -> list[int]:
    counts = []
    for step in (history.forget_runs, history.forget_objects):
        with db.transaction() as session:
            counts.append(step(session, life))
    return counts


def test_ended_runs_go_after_their_retention_and_open_ones_stay(schedule: Schedule) -> None:
    a_run(schedule, OLD)
    kept = {
        a_run(schedule, YOUNG),
        a_run(schedule, OLD - timedelta(days=1), RunState.RUNNING),
        a_run(schedule, OLD - timedelta(days=2), ended_at=YOUNG),
    }
    assert forget() == [1, 0]
    assert left() == kept


def test_the_batch_of_a_forgotten_run_stays(caller: Caller, schedule: Schedule) -> None:
    run_id = a_run(schedule, OLD)
    with db.transaction() as session:
        batch = factories.batch(
            session,
            caller,
            factories.input_file(session, caller, b"{}"),
            status=BatchStatus.COMPLETED.value,
            schedule_id=schedule.id,
            run_id=run_id,
        )
    assert forget() == [1, 0]
    with db.transaction() as session:
        found = session.get_one(Batch, batch.id)
        assert (found.schedule_id, found.run_id) == (schedule.id, None)


def test_an_object_stays_taken_until_its_schedule_is_deleted_for_long(schedule: Schedule) -> None:
    took(schedule, a_run(schedule, OLD), "a.jsonl")
    assert forget() == [1, 0]
    with db.transaction() as session:
        assert objects(session) == {"a.jsonl": None}
        session.get_one(Schedule, schedule.id).deleted_at = YOUNG
        session.get_one(Schedule, schedule.id).next_fire_at = None
    assert forget() == [0, 0]
    with db.transaction() as session:
        session.get_one(Schedule, schedule.id).deleted_at = OLD
    assert forget() == [0, 1]
    with db.transaction() as session:
        assert objects(session) == {}


def test_the_sweep_goes_on_in_steps_until_none_is_left(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "RUNS_AT_ONCE", 2)
    for hours in range(5):
        a_run(schedule, OLD - timedelta(hours=hours))
    assert len(list(sweeps._forget_runs())) == 3
    assert left() == set()


def test_runs_are_kept_for_ever_if_told_so(
    schedule: Schedule, configure: Callable[..., None]
) -> None:
    kept = {a_run(schedule, OLD)}
    configure(run_retention="forever")
    list(sweeps._forget_runs())
    assert left() == kept

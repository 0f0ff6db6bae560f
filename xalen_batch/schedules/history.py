"""The history of schedules: runs that ended long ago are forgotten, in steps."""

from datetime import timedelta

from sqlalchemy import delete, exists, func, select, tuple_, update
from sqlalchemy.orm import Session

from xalen_batch.models import Batch, ConsumedObject, InboxRequest, Schedule, ScheduleRun
from xalen_batch.states import OPEN_RUNS

RUNS_AT_ONCE = 500
OBJECTS_AT_ONCE = 1_000


def forget_runs(session: Session, life: timedelta) -> int:
    """Delete some runs that ended more than `life` ago; returns their number.

    Batches and their invoices stay. Objects that a run took stay known as taken.
    """
    # A run's id has the time of its creation, which is before its end: the scan of the primary key
    # ends where runs are too young.
    old = (
        select(ScheduleRun.id)
        .where(
            ScheduleRun.id < func.lowest_id(func.now() - life),
            ScheduleRun.state.not_in(OPEN_RUNS),
            func.coalesce(ScheduleRun.ended_at, ScheduleRun.created_at) < func.now() - life,
        )
        .order_by(ScheduleRun.id)
        .limit(RUNS_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    runs = session.scalars(old).all()
    for statement in (
        update(Batch).where(Batch.run_id.in_(runs)).values(run_id=None),
        update(ConsumedObject).where(ConsumedObject.run_id.in_(runs)).values(run_id=None),
        delete(InboxRequest).where(InboxRequest.run_id.in_(runs)),
        delete(ScheduleRun).where(ScheduleRun.id.in_(runs)),
    ):
        session.execute(statement, execution_options={"synchronize_session": False})
    return len(runs)


def forget_objects(session: Session, life: timedelta) -> int:
    """Forget some objects that schedules had taken which were deleted more than `life` ago.

    A schedule that is not deleted would take its objects again.
    """
    key = tuple_(ConsumedObject.schedule_id, ConsumedObject.path, ConsumedObject.version)
    is_over = exists().where(
        Schedule.id == ConsumedObject.schedule_id, Schedule.deleted_at < func.now() - life
    )
    some = (
        select(ConsumedObject.schedule_id, ConsumedObject.path, ConsumedObject.version)
        .where(is_over, ConsumedObject.run_id.is_(None))
        .limit(OBJECTS_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    gone = session.execute(
        delete(ConsumedObject).where(key.in_(some)).returning(ConsumedObject.path)
    ).all()
    return len(gone)

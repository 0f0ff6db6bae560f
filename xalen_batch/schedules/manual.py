"""Manual runs and backfills: runs that a request asks for."""

from datetime import datetime
from itertools import takewhile

from sqlalchemy import select
from sqlalchemy.orm import Session

from xalen_batch import db
from xalen_batch.broker import Job
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Schedule, ScheduleRun
from xalen_batch.schedules import fire, runs
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.misfire import MICROSECOND
from xalen_batch.schedules.runs import Trigger
from xalen_batch.schedules.start import Ended, Waits
from xalen_batch.schedules.turn import Turn
from xalen_batch.states import RunState

MOST_BACKFILLED = 100


def run_now(session: Session, schedule: Schedule, as_of: datetime | None = None) -> ScheduleRun:
    """Run a locked schedule now, beside its instants. Starts no other run that waits.

    `as_of`: the moment that the placeholders stand for, such as a failed night; by default now.
    InvalidRequest if `overlap` skips the run, TooManyRequests if too many runs wait already.
    """
    fire.bring_up_to_date(session, schedule, Turn(attempts=0))
    now = db.now(session)
    # Instants are whole seconds: a manual run must never take the key of one.
    moment = now if now.microsecond else now + MICROSECOND
    run = runs.add(session, schedule, moment, Trigger.MANUAL, as_of=as_of)
    if run is None:
        raise InvalidRequest(
            "The schedule was run at this very moment already. Try again.", code="run_in_progress"
        )
    unended = runs.unended(session, schedule)
    outcome = fire.begin(session, schedule, run, unended, now, Turn(attempts=1))
    if isinstance(outcome, Ended) and outcome.reason == "overlap":
        raise InvalidRequest(
            f"{outcome.message} Wait for its end, or cancel its batch, or change the schedule's"
            " `overlap`.",
            code="run_in_progress",
        )
    if isinstance(outcome, Waits):
        _refuse_beyond_cap(session, schedule, new=1)
    db.enqueue(session, Job.FIRE)
    return run


def backfill(
    session: Session, schedule: Schedule, start_at: datetime, end_at: datetime
) -> list[ScheduleRun]:
    """Run a locked schedule's past instants in [start_at, end_at) that never ran.

    Missed and skipped instants wait again; instants that have run stay as they are. At most one
    run starts here, later turns start the others. TooManyRequests, with nothing recorded, if more
    runs would wait than may.
    """
    fire.bring_up_to_date(session, schedule, Turn(attempts=0))
    definition = Definition.model_validate(schedule.definition)
    now = db.now(session)
    instants = _to_backfill(definition, start_at, end_at, now)
    known = {
        run.scheduled_for: run
        for run in session.scalars(
            select(ScheduleRun).where(
                ScheduleRun.schedule_id == schedule.id, ScheduleRun.scheduled_for.in_(instants)
            )
        )
    }
    blanks = [
        runs.blank(schedule, instant, Trigger.BACKFILL, RunState.WAITING)
        for instant in instants
        if instant not in known
    ]
    again = [run for run in known.values() if run.state in (RunState.MISSED, RunState.SKIPPED)]
    for run in again:
        run.wait_again(schedule, Trigger.BACKFILL.value, now)
    found = sorted([*runs.record(session, blanks), *again], key=lambda run: run.scheduled_for)
    if found:
        _refuse_beyond_cap(session, schedule, new=len(found))
    unended = runs.unended(session, schedule)
    fire.start_waiting(session, schedule, unended, now, Turn(attempts=1))
    db.enqueue(session, Job.FIRE)
    return found


def _refuse_beyond_cap(session: Session, schedule: Schedule, *, new: int) -> None:
    """TooManyRequests if `new` runs that were just recorded are too many to wait."""
    refusal = runs.refuse_to_wait(session, schedule, new=new)
    if refusal is not None:
        raise refusal


def _to_backfill(
    definition: Definition, start_at: datetime, end_at: datetime, now: datetime
) -> list[datetime]:
    """The schedule's past instants in [start_at, end_at). InvalidRequest if none or too many."""
    if definition.inbox is not None:
        raise InvalidRequest(
            "A schedule with an inbox has nothing to backfill: its requests wait for the next run."
            " Use run.",
            param="from",
        )
    instants = []
    end = min(end_at, now)
    for instant in takewhile(
        lambda instant: instant < end, definition.fires(start_at - MICROSECOND)
    ):
        instants.append(instant)
        if len(instants) > MOST_BACKFILLED:
            raise InvalidRequest(
                f"There are more than {MOST_BACKFILLED} instants between {start_at.isoformat()} and"
                f" {end_at.isoformat()}. Backfill a shorter time at once.",
                param="to",
            )
    if end_at <= start_at:
        raise InvalidRequest(
            f"from: {start_at.isoformat()} is not before `to`, {end_at.isoformat()}. Swap them.",
            param="from",
        )
    if not instants:
        raise InvalidRequest(
            f"The schedule has no instant between {start_at.isoformat()} and {end_at.isoformat()}"
            f" that has come (it is {now.isoformat(timespec='seconds')}). Preview it to see when it"
            " fires.",
            param="from",
        )
    return instants

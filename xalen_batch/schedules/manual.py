"""Runs that somebody asks for: now, or for instants that have passed."""

from datetime import datetime
from itertools import takewhile

from sqlalchemy import select
from sqlalchemy.orm import Session

from xalen_batch import db
from xalen_batch.broker import Job
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Schedule, ScheduleRun
from xalen_batch.schedules import overlap, runs
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.fire import MICROSECOND, bring_up_to_date
from xalen_batch.schedules.runs import Trigger
from xalen_batch.schedules.turn import Turn
from xalen_batch.states import RunState

MOST_BACKFILLED = 100


def run_now(session: Session, schedule: Schedule, as_of: datetime | None = None) -> ScheduleRun:
    """Run a locked schedule now, beside its instants. InvalidRequest if `overlap` forbids it,
    TooManyRequests if it would wait behind too many.

    `as_of`: the moment whose dates it has, such as a night that failed; now unless given. Runs that
    wait are left to the firing, so a request starts one run at most.
    """
    bring_up_to_date(session, schedule, Turn(attempts=0))
    now = db.now(session)
    # Never a whole second: that might be an instant of the schedule's own.
    moment = now if now.microsecond else now + MICROSECOND
    made = runs.record(
        session, [runs.blank(schedule, moment, Trigger.MANUAL, RunState.WAITING, as_of=as_of)]
    )
    if not made:
        raise InvalidRequest(
            "The schedule was run at this very moment already. Try again.", code="run_in_progress"
        )
    overlap.begin(
        session, schedule, made[0], runs.unended(session, schedule), now, Turn(attempts=1)
    )
    if made[0].reason == "overlap" and made[0].state == RunState.SKIPPED:
        raise InvalidRequest(
            f"{made[0].message} Wait for its end, or cancel its batch, or change the schedule's"
            " `overlap`.",
            code="run_in_progress",
        )
    if made[0].state == RunState.WAITING and (
        refusal := runs.refuse_to_wait(session, schedule, new=1)
    ):
        raise refusal
    db.enqueue(session, Job.FIRE)
    return made[0]


def backfill(
    session: Session, schedule: Schedule, start_at: datetime, end_at: datetime
) -> list[ScheduleRun]:
    """Run a locked schedule's past instants in [start_at, end_at) that never ran, one after
    another.

    Instants that were missed or skipped are taken up again; those that have run are left alone. At
    most one run is started here, the firing starts the others. TooManyRequests, and nothing is
    recorded, if more would wait than may.
    """
    bring_up_to_date(session, schedule, Turn(attempts=0))
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
    taken_up = [run for run in known.values() if run.state in (RunState.MISSED, RunState.SKIPPED)]
    for run in taken_up:
        run.take_up(schedule, Trigger.BACKFILL.value, now)
    found = sorted([*runs.record(session, blanks), *taken_up], key=lambda run: run.scheduled_for)
    if found and (refusal := runs.refuse_to_wait(session, schedule, new=len(found))):
        raise refusal
    overlap.start_waiting(session, schedule, runs.unended(session, schedule), now, Turn(attempts=1))
    db.enqueue(session, Job.FIRE)
    return found


def _to_backfill(
    definition: Definition, start_at: datetime, end_at: datetime, now: datetime
) -> list[datetime]:
    if definition.inbox is not None:
        raise InvalidRequest(
            "A schedule with an inbox has nothing to backfill: its requests wait for the next run."
            " Use run.",
            param="from",
        )
    instants = []
    for instant in takewhile(
        lambda instant: instant < min(end_at, now), definition.fires(start_at - MICROSECOND)
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

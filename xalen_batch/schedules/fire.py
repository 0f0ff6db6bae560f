"""Fire: bring schedules up to date, each in short transactions that any number of processes may try
at once.

The schedule's row is locked, or left to whoever has it; the unique key of an instant refuses a
second firing; the batch is made in the transaction that records the run and moves the next fire on.
What is slow, putting a run's input file together, is left to the validation of its batch.
PostgreSQL's clock decides.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from xalen_batch import db, log
from xalen_batch.accounts import accounts
from xalen_batch.errors import InvalidRequest, Unavailable
from xalen_batch.models import Schedule, ScheduleRun
from xalen_batch.schedules import due as due_schedules
from xalen_batch.schedules import misfire, overlap, runs
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.misfire import Miss
from xalen_batch.schedules.rotation import Due, Rotation
from xalen_batch.schedules.runs import Trigger
from xalen_batch.schedules.turn import Turn
from xalen_batch.states import RunState, ScheduleStatus

logger = log.get(__name__)

# Instants recorded as missed in one transaction.
MISSED_AT_ONCE = 1_000
# Such transactions' worth of instants that a request records itself.
TURNS_OF_A_REQUEST = 10
MICROSECOND = timedelta(microseconds=1)
# The most that new rules of a zone make a fire earlier than the old ones had it.
LONGEST_SHIFT = timedelta(hours=3)

MISSED = {
    Miss.TOO_OLD: (
        "Nothing was there to fire it, and it was older than the catch-up window when something"
        " was."
    ),
    Miss.LATER_ONE: (
        "Nothing was there to fire it on time; with `misfire: latest` a later instant stands"
        " for it."
    ),
    Miss.TOO_MANY: (
        "Nothing was there to fire it on time, and more instants were late than `misfire_limit`."
    ),
    Miss.NEVER_LATE: (
        "Nothing was there to fire it on time, and with `misfire: none` it is not made up for."
    ),
    Miss.PAUSED: "Failed runs paused the schedule before it fired.",
}


def run() -> None:
    """Bring every schedule up to date that has something to do; accounts take turns.

    One schedule that fails holds up no other.
    """
    rotation = Rotation(_read)
    while (due := rotation.next()) is not None:
        turn = rotation.turn(due)
        try:
            with db.transaction() as session:
                is_mine = _advance(session, due, turn)
        except (InvalidRequest, ValidationError) as error:
            _pause_unreadable(due.id, error)
        except db.UNAVAILABLE as error:
            # Raises if it is away for all of them; else the next look takes this one.
            db.ping()
            logger.warning("schedule.postponed", schedule_id=due.id, reason=db.trouble(error))
        except Exception as error:
            logger.error("schedule.crashed", schedule_id=due.id, **log.cause(error))
        else:
            if is_mine:
                rotation.end(due, turn)
            else:
                rotation.leave(due.owner)


def bring_up_to_date(session: Session, schedule: Schedule, turn: Turn | None = None) -> None:
    """Record all instants of a locked schedule that have come, as it is defined now, and start what
    the turn has attempts for.

    Unavailable if nothing fired it for so long that recording takes more than a request may: the
    firing goes on with it meanwhile.
    """
    turn = turn or Turn()
    for _ in range(TURNS_OF_A_REQUEST):
        _do_due(session, schedule, turn)
        if schedule.next_fire_at is None or schedule.next_fire_at > db.now(session):
            return
    raise Unavailable(
        "Nothing fired this schedule for a long time, and its instants are being recorded. Send the"
        " request again in a moment."
    )


def _read() -> list[Due]:
    with db.reading() as session:
        return due_schedules.read(session)


def _advance(session: Session, due: Due, turn: Turn) -> bool:
    """Do a schedule's turn. False: another worker is at its account."""
    if not due_schedules.take(session, due.owner):
        return False
    free = (
        select(Schedule)
        .where(Schedule.id == due.id)
        .with_for_update(skip_locked=True, key_share=True)
    )
    schedule = session.scalars(free).one_or_none()
    if schedule is not None:
        _do_due(session, schedule, turn)
    return True


def _do_due(session: Session, schedule: Schedule, turn: Turn) -> None:
    """End runs, start some that wait, and record instants: of a long absence MISSED_AT_ONCE.

    Of a disabled account, only end runs.
    """
    next_fire_at = schedule.next_fire_at
    unended = runs.unended(session, schedule)
    if schedule.deleted_at is None and accounts.is_enabled(session, schedule.account_id):
        now = db.now(session)
        overlap.start_waiting(session, schedule, unended, now, turn)
        if schedule.status != ScheduleStatus.PAUSED:
            _fire_due(session, schedule, unended, now, turn)
        elif next_fire_at is not None and next_fire_at <= now:
            _miss_due(session, schedule, next_fire_at, now)


def _pause_unreadable(schedule_id: UUID, error: InvalidRequest | ValidationError) -> None:
    """Stop a schedule that cannot be computed any more, such as one in a zone that is gone, where
    its owner sees it.
    """
    with db.transaction() as session:
        schedule = session.get_one(Schedule, schedule_id, with_for_update={"key_share": True})
        if schedule.status == ScheduleStatus.ACTIVE:
            problem = (
                error.message
                if isinstance(error, InvalidRequest)
                else "its definition is none any more."
            )
            schedule.pause(
                db.now(session), f"It cannot fire: {problem} Change the schedule, then resume it."
            )
            logger.error("schedule.unreadable", schedule_id=schedule_id)


def _fire_due(
    session: Session, schedule: Schedule, unended: Sequence[ScheduleRun], now: datetime, turn: Turn
) -> None:
    """Record every instant that has come, begin those to run, and move the next fire on."""
    if schedule.next_fire_at is None or schedule.next_fire_at > now:
        return
    definition = Definition.model_validate(schedule.definition)
    delay = definition.delay(schedule.id)
    first = schedule.next_fire_at - delay
    come = _come(definition, first, now - delay)
    if first not in come[:1]:
        # The zone's rules have changed since this fire was computed: by the new ones it may have
        # come before.
        come = _come(definition, _last_fired(session, schedule, first) + MICROSECOND, now - delay)
    if not come:
        schedule.aim(definition.next_fire(schedule.id, now - delay))
        return
    due = misfire.sort_out([(instant, now - delay - instant) for instant in come], definition)
    _record_missed(session, schedule, due.missed, now)
    schedule.aim(definition.next_fire(schedule.id, come[-1]))
    turn.is_behind = schedule.next_fire_at is not None and schedule.next_fire_at <= now
    for instant in due.run:
        # One that fails may pause the schedule; what had come by then still runs.
        for run in runs.record(
            session, [runs.blank(schedule, instant, Trigger.SCHEDULE, RunState.WAITING)]
        ):
            overlap.begin(session, schedule, run, unended, now, turn, is_made_up=len(due.run) > 1)
            unended = [*unended, run]
            if run.state == RunState.WAITING and (
                refusal := runs.refuse_to_wait(session, schedule, new=1)
            ):
                runs.end(session, schedule, run, RunState.SKIPPED, refusal.code, refusal.message)
    if schedule.status == ScheduleStatus.ENDED:
        logger.info("schedule.ended", schedule_id=schedule.id)
    session.flush()


def _last_fired(session: Session, schedule: Schedule, first: datetime) -> datetime:
    """Before which nothing of a schedule can have been lost to new rules of its zone."""
    last = session.scalar(
        select(func.max(ScheduleRun.scheduled_for)).where(
            ScheduleRun.schedule_id == schedule.id,
            ScheduleRun.trigger == Trigger.SCHEDULE,
            ScheduleRun.scheduled_for < first,
        )
    )
    return max(last or schedule.updated_at, schedule.updated_at, first - LONGEST_SHIFT)


def _miss_due(session: Session, schedule: Schedule, next_fire_at: datetime, now: datetime) -> None:
    """Record what had come when a failure that came to light only now paused the schedule."""
    definition = Definition.model_validate(schedule.definition)
    delay = definition.delay(schedule.id)
    come = takewhile(
        lambda instant: instant <= now - delay, definition.fires(next_fire_at - delay - MICROSECOND)
    )
    _record_missed(session, schedule, [(instant, Miss.PAUSED) for instant in come], now)


def _come(definition: Definition, first: datetime, now: datetime) -> list[datetime]:
    """The instants from `first` to now.

    Of a long absence only those that are too old come at first, some at a time.
    """
    instants: list[datetime] = []
    for instant in takewhile(lambda instant: instant <= now, definition.fires(first - MICROSECOND)):
        if len(instants) >= MISSED_AT_ONCE and misfire.is_too_old(now - instants[-1], definition):
            break
        instants.append(instant)
    return instants


def _record_missed(
    session: Session, schedule: Schedule, missed: Sequence[tuple[datetime, Miss]], now: datetime
) -> None:
    rows = [
        runs.blank(schedule, instant, Trigger.SCHEDULE, RunState.MISSED)
        | {
            "reason": reason.value,
            "message": MISSED[reason],
            "ended_at": now,
        }
        for instant, reason in missed
    ]
    if recorded := runs.record(session, rows):
        schedule.count(RunState.MISSED, len(recorded))
        logger.warning(
            "schedule.run_missed",
            schedule_id=schedule.id,
            number=len(recorded),
            first=min(run.scheduled_for for run in recorded).isoformat(),
            last=max(run.scheduled_for for run in recorded).isoformat(),
            reasons=sorted({str(run.reason) for run in recorded}),
        )

"""Fire: give each due schedule its turns. Any number of processes may fire at once.

A turn is one short transaction: lock the schedule's row, end runs whose batches have ended, start
runs that wait, record the instants that have come, move the next fire on, start their runs. The
unique key (schedule_id, scheduled_for) refuses a second run of an instant.

`misfire` decides which instants run and `overlap` what a run does while earlier ones are open.
`start` makes a run's batch and returns the outcome; `_record` here writes every outcome to the run.
PostgreSQL's clock decides.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import takewhile
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from xalen_batch import db, ids, log
from xalen_batch.accounts import accounts, quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.batches import batches
from xalen_batch.errors import InvalidRequest, NotCancellable, Unavailable
from xalen_batch.metrics import counted
from xalen_batch.models import Batch, Schedule, ScheduleRun
from xalen_batch.schedules import due as due_schedules
from xalen_batch.schedules import inbox, misfire, overlap, runs
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.misfire import MICROSECOND, Miss
from xalen_batch.schedules.overlap import Action
from xalen_batch.schedules.rotation import DueSchedule, Rotation
from xalen_batch.schedules.runs import Trigger
from xalen_batch.schedules.start import OF_ITS_SOURCE, Ended, Started, StartOutcome, Waits, start
from xalen_batch.schedules.turn import STARTS_AT_ONCE, Turn
from xalen_batch.states import OPEN_RUNS, RunState, ScheduleStatus
from xalen_batch.timezones import zone

logger = log.get(__name__)

# First half of the key of an account's advisory lock for firing; the second half is the account.
FIRING_LOCK = 7261959
# Passes over a schedule's late instants that one request makes, of MISSED_AT_ONCE instants each.
PASSES_OF_A_REQUEST = 10


def run() -> None:
    """Advance schedules until none is due. Accounts take turns.

    A schedule that fails does not stop the others. Called on a slot's thread of a worker.
    """
    rotation = Rotation(due_schedules.poll)
    for due, turn in rotation:
        try:
            with db.transaction() as session:
                is_mine = _advance(session, due, turn)
        except (InvalidRequest, ValidationError) as error:
            _pause_unreadable(due.id, error)
        except db.UNAVAILABLE as error:
            # Raises if the database is away for all; otherwise a later poll fires this schedule.
            db.ping()
            logger.warning("schedule.postponed", schedule_id=due.id, reason=db.trouble(error))
        except Exception as error:
            logger.error("schedule.crashed", schedule_id=due.id, **log.cause(error))
        else:
            if is_mine:
                rotation.end(due, turn)
            else:
                rotation.leave(due.owner)


def _advance(session: Session, due: DueSchedule, turn: Turn) -> bool:
    """Take a schedule's turn. False if another worker fires its account."""
    is_mine = _lock_account(session, due.owner)
    if is_mine:
        # SKIP LOCKED: a request that holds the row brings the schedule up to date itself.
        unlocked = (
            select(Schedule)
            .where(Schedule.id == due.id)
            .with_for_update(skip_locked=True, key_share=True)
        )
        schedule = session.scalars(unlocked).one_or_none()
        if schedule is not None:
            _take_turn(session, schedule, turn)
    return is_mine


def _lock_account(session: Session, owner: Owner) -> bool:
    """Lock an account for firing until this transaction ends. False if another worker has it."""
    key = func.hashtext(bindparam("owner"))
    locked = session.scalar(
        select(func.pg_try_advisory_xact_lock(FIRING_LOCK, key)),
        {"owner": f"{owner.account_id} {owner.livemode}"},
    )
    return bool(locked)


def _take_turn(session: Session, schedule: Schedule, turn: Turn) -> None:
    """End runs, attempt runs that wait, and fire the instants that have come.

    Only ends runs if the schedule is deleted or its account disabled.
    """
    # Read this first: a run that ends as failed may pause the schedule, which clears it.
    next_fire_at = schedule.next_fire_at
    unended = runs.unended(session, schedule)
    if schedule.deleted_at is None and accounts.is_enabled(session, schedule.account_id):
        now = db.now(session)
        start_waiting(session, schedule, unended, now, turn)
        if next_fire_at is not None and next_fire_at <= now:
            if schedule.status == ScheduleStatus.PAUSED:
                _miss_due(session, schedule, next_fire_at, now)
            else:
                _fire_due(session, schedule, next_fire_at, unended, now, turn)


def start_waiting(
    session: Session, schedule: Schedule, unended: Sequence[ScheduleRun], now: datetime, turn: Turn
) -> None:
    """Attempt the runs that wait, until the turn has no attempt left.

    Unless runs may overlap, one runs at a time.
    """
    is_busy = any(run.state == RunState.RUNNING for run in unended)
    waiting = [
        run for run in unended if run.state == RunState.WAITING and not _is_held(schedule, run)
    ]
    for run in _in_order(waiting, now):
        if _may_overlap(run) or not is_busy:
            _record(session, schedule, run, start(session, schedule, run, now, turn), now)
            is_busy = is_busy or run.state in OPEN_RUNS
        if turn.is_cut:
            break


def _fire_due(
    session: Session,
    schedule: Schedule,
    next_fire_at: datetime,
    unended: Sequence[ScheduleRun],
    now: datetime,
    turn: Turn,
) -> None:
    """Record the instants that have come, move the next fire on, and begin the runs."""
    definition = Definition.model_validate(schedule.definition)
    delay = definition.delay(schedule.id)
    first, until = next_fire_at - delay, now - delay
    come = misfire.come(definition, first, until)
    if first not in come[:1]:
        # The zone's rules have changed since this fire was computed: an instant of the new rules
        # may be earlier.
        last = runs.last_fired(session, schedule, first)
        come = misfire.come(definition, last + MICROSECOND, until)
    plan = misfire.plan(come, until, definition)
    if plan.missed:
        runs.record_missed(session, schedule, plan.missed, now)
    # Before the runs begin: one that fails may pause the schedule.
    schedule.aim(definition.next_fire(schedule.id, come[-1] if come else until))
    turn.is_behind = schedule.next_fire_at is not None and schedule.next_fire_at <= now
    for instant in plan.run:
        run = runs.add(session, schedule, instant, Trigger.SCHEDULE)
        if run is not None:
            outcome = begin(
                session, schedule, run, unended, now, turn, is_made_up=len(plan.run) > 1
            )
            unended = [*unended, run]
            if isinstance(outcome, Waits):
                _skip_beyond_cap(session, schedule, run, now)
    if schedule.status == ScheduleStatus.ENDED:
        logger.info("schedule.ended", schedule_id=schedule.id)
    session.flush()


def begin(
    session: Session,
    schedule: Schedule,
    run: ScheduleRun,
    unended: Sequence[ScheduleRun],
    now: datetime,
    turn: Turn,
    *,
    is_made_up: bool = False,
) -> StartOutcome:
    """Start a new run, or do what `overlap` says while others are open; record the outcome.

    `is_made_up`: the run is one of several for late instants.
    """
    others = [
        other
        for other in unended
        if other is not run and other.state in OPEN_RUNS and not _is_held(schedule, other)
    ]
    states = {other.state for other in others}
    action = overlap.decide(
        run.definition["overlap"],
        is_running=RunState.RUNNING in states,
        is_waiting=RunState.WAITING in states,
        is_made_up=is_made_up,
    )
    outcome: StartOutcome
    if action is Action.WAIT:
        outcome = Waits("overlap", f"{_named(others[0])} has not ended.")
    elif action is Action.SKIP:
        outcome = Ended(RunState.SKIPPED, "overlap", f"{_named(others[0])} had not ended.")
    else:
        if action is Action.CANCEL_PREVIOUS:
            _cancel(session, schedule, others, now)
        outcome = start(session, schedule, run, now, turn)
    _record(session, schedule, run, outcome, now)
    return outcome


def _record(
    session: Session, schedule: Schedule, run: ScheduleRun, outcome: StartOutcome, now: datetime
) -> None:
    """Write the outcome of a start to the run's row."""
    match outcome:
        case Started(batch):
            run.move(schedule, RunState.RUNNING, now)
            if run.lag is not None:
                counted.FIRE_LAG.observe(run.lag)
            logger.info(
                "schedule.fired",
                schedule_id=schedule.id,
                run_id=run.id,
                batch_id=batch.id,
                trigger=run.trigger,
                lag=run.lag,
            )
        case Waits(reason, message):
            run.wait(reason, message)
        case Ended(state, reason, message):
            runs.end(session, schedule, run, state, reason, message)


def _skip_beyond_cap(session: Session, schedule: Schedule, run: ScheduleRun, now: datetime) -> None:
    """Skip a new run that waits if too many runs wait already."""
    refusal = runs.refuse_to_wait(session, schedule, new=1)
    if refusal is not None:
        skipped = Ended(RunState.SKIPPED, str(refusal.code), refusal.message)
        _record(session, schedule, run, skipped, now)


def _cancel(
    session: Session, schedule: Schedule, others: Sequence[ScheduleRun], now: datetime
) -> None:
    """Cancel the batches of earlier runs, and skip earlier runs that wait."""
    # Lock order: the account's lock before its batches.
    quotas.lock(session, Owner(schedule.account_id, schedule.livemode))
    for run in others:
        if run.state == RunState.WAITING:
            superseded = Ended(RunState.SKIPPED, "superseded", "A later run took its place.")
            _record(session, schedule, run, superseded, now)
            continue
        batch = session.scalars(select(Batch).where(Batch.run_id == run.id)).one()
        try:
            batches.cancel(session, batch)
            # The new run takes the requests that are not in the batch's file.
            inbox.release(session, run)
        except NotCancellable:
            # The batch has just ended, or is about to.
            logger.info("schedule.previous_ended", schedule_id=schedule.id, run_id=run.id)


def _in_order(waiting: list[ScheduleRun], now: datetime) -> list[ScheduleRun]:
    """Runs in the order of their attempts: the oldest first.

    Overlapping runs that wait for their source come last. They rotate, so a turn's few attempts
    reach each of them in time.
    """
    behind = [run for run in waiting if run.reason in OF_ITS_SOURCE and _may_overlap(run)]
    ahead = [run for run in waiting if run not in behind]
    first = int(now.timestamp()) * STARTS_AT_ONCE % max(1, len(behind))
    return [*ahead, *behind[first:], *behind[:first]]


def _may_overlap(run: ScheduleRun) -> bool:
    return bool(run.definition["overlap"] == "allow")


def _is_held(schedule: Schedule, run: ScheduleRun) -> bool:
    """Whether a run waits because its schedule is paused. Manual runs and backfills still start."""
    return (
        run.state == RunState.WAITING
        and run.trigger == Trigger.SCHEDULE
        and schedule.status == ScheduleStatus.PAUSED
    )


def _named(run: ScheduleRun) -> str:
    local = run.scheduled_for.astimezone(zone(run.definition["timezone"]))
    return f"The run {ids.render('run', run.id)} for {local.isoformat(timespec='seconds')}"


def _miss_due(session: Session, schedule: Schedule, next_fire_at: datetime, now: datetime) -> None:
    """Record the instants that had come before a failed run paused the schedule in this turn."""
    definition = Definition.model_validate(schedule.definition)
    delay = definition.delay(schedule.id)
    later = definition.fires(next_fire_at - delay - MICROSECOND)
    come = takewhile(lambda instant: instant <= now - delay, later)
    runs.record_missed(session, schedule, [(instant, Miss.PAUSED) for instant in come], now)


def _pause_unreadable(schedule_id: UUID, error: InvalidRequest | ValidationError) -> None:
    """Pause a schedule whose definition is invalid by now, such as one in a removed time zone.

    Its owner sees the note.
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


def bring_up_to_date(session: Session, schedule: Schedule, turn: Turn | None = None) -> None:
    """Fire a locked schedule's instants that have come, before a request changes the schedule.

    Unavailable if more instants have come than a request may record: firing records the rest.
    Called on a request's thread.
    """
    turn = turn or Turn()
    for _ in range(PASSES_OF_A_REQUEST):
        _take_turn(session, schedule, turn)
        if schedule.next_fire_at is None or schedule.next_fire_at > db.now(session):
            return
    raise Unavailable(
        "Nothing fired this schedule for a long time, and its instants are being recorded. Send the"
        " request again in a moment."
    )

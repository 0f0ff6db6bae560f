"""Runs of one schedule that meet: which starts, which waits for the one before, which is left out."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from xalen_batch import batches, ids, log
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.errors import NotCancellable
from xalen_batch.models import Batch, Schedule, ScheduleRun
from xalen_batch.schedules import inbox, misfire, runs
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.misfire import Meeting
from xalen_batch.schedules.runs import Trigger
from xalen_batch.schedules.start import OF_ITS_SOURCE, start
from xalen_batch.schedules.turn import STARTS_AT_ONCE, Turn
from xalen_batch.states import OPEN_RUNS, RunState, ScheduleStatus
from xalen_batch.timezones import zone

logger = log.get(__name__)


def begin(
    session: Session,
    schedule: Schedule,
    run: ScheduleRun,
    unended: Sequence[ScheduleRun],
    now: datetime,
    turn: Turn,
    *,
    is_made_up: bool = False,
) -> None:
    """Start a new run, or do what `overlap` says where others have not ended.

    Without an attempt left in the turn, it waits.
    """
    definition = Definition.model_validate(run.definition)
    others = [
        other
        for other in unended
        if other is not run and other.state in OPEN_RUNS and not _is_held(schedule, other)
    ]
    states = {other.state for other in others}
    meeting = misfire.meet(
        definition.overlap,
        is_running=RunState.RUNNING in states,
        is_waiting=RunState.WAITING in states,
        is_made_up=is_made_up,
    )
    match meeting:
        case Meeting.START:
            start(session, schedule, run, now, turn)
        case Meeting.WAIT:
            run.wait("overlap", f"{_named(others[0])} has not ended.")
        case Meeting.SKIP:
            runs.end(
                session,
                schedule,
                run,
                RunState.SKIPPED,
                "overlap",
                f"{_named(others[0])} had not ended.",
            )
        case Meeting.CANCEL_PREVIOUS:
            # Lock order: the account's lock before those of its batches.
            quotas.lock(session, Owner(schedule.account_id, schedule.livemode))
            for other in others:
                _cancel(session, schedule, other)
            start(session, schedule, run, now, turn)


def start_waiting(
    session: Session, schedule: Schedule, unended: Sequence[ScheduleRun], now: datetime, turn: Turn
) -> None:
    """Start runs that wait, the oldest first, one at a time unless they may overlap.

    A pause holds those of the schedule itself.
    """
    is_busy = any(run.state == RunState.RUNNING for run in unended)
    for run in _in_order(
        [run for run in unended if run.state == RunState.WAITING and not _is_held(schedule, run)],
        now,
    ):
        if _may_overlap(run) or not is_busy:
            start(session, schedule, run, now, turn)
            is_busy = is_busy or run.state in OPEN_RUNS
        if turn.is_cut:
            return


def _in_order(waiting: list[ScheduleRun], now: datetime) -> list[ScheduleRun]:
    """The oldest first.

    Overlapping runs that wait for their source come last and rotate, as a turn may have room for a
    few only.
    """
    ahead = [run for run in waiting if run.reason not in OF_ITS_SOURCE or not _may_overlap(run)]
    behind = [run for run in waiting if run.reason in OF_ITS_SOURCE and _may_overlap(run)]
    first = int(now.timestamp()) * STARTS_AT_ONCE % max(1, len(behind))
    return [*ahead, *behind[first:], *behind[:first]]


def _may_overlap(run: ScheduleRun) -> bool:
    return bool(run.definition["overlap"] == "allow")


def _is_held(schedule: Schedule, run: ScheduleRun) -> bool:
    """Whether a pause keeps a run from starting."""
    return (
        run.state == RunState.WAITING
        and run.trigger == Trigger.SCHEDULE
        and schedule.status == ScheduleStatus.PAUSED
    )


def _cancel(session: Session, schedule: Schedule, run: ScheduleRun) -> None:
    if run.state == RunState.WAITING:
        runs.end(
            session, schedule, run, RunState.SKIPPED, "superseded", "A later run took its place."
        )
        return
    batch = session.scalars(select(Batch).where(Batch.run_id == run.id)).one()
    try:
        batches.cancel(session, batch)
        # Those that its file has not taken in; the run that takes its place does.
        inbox.unseal(session, run)
    except NotCancellable:
        # It has just ended, or is about to.
        logger.info("schedule.previous_ended", schedule_id=schedule.id, run_id=run.id)


def _named(run: ScheduleRun) -> str:
    local = run.scheduled_for.astimezone(zone(run.definition["timezone"]))
    return f"The run {ids.render('run', run.id)} for {local.isoformat(timespec='seconds')}"

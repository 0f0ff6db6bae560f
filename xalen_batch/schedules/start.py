"""Starting a run: its batch, and what its input file will be made of, pinned in the transaction
that fires it.
"""

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from xalen_batch import batches, db, files, ids, log, storage
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.errors import InvalidRequest, NotFound, StorageFull, TooManyRequests
from xalen_batch.files import Purpose
from xalen_batch.models import Schedule, ScheduleRun
from xalen_batch.schedules import inbox, misfire, runs, sources
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.sources import NotReady
from xalen_batch.schedules.templates import Moment
from xalen_batch.schedules.turn import Turn
from xalen_batch.states import RunState
from xalen_batch.timezones import zone

logger = log.get(__name__)

NOT_READY = "not_ready"
UNREACHABLE = "storage_unreachable"
# Reasons for which a run waits that say nothing about the runs behind it.
OF_ITS_SOURCE = frozenset({NOT_READY, UNREACHABLE})


class _Empty(Exception):
    """There is nothing to run."""


def start(
    session: Session, schedule: Schedule, run: ScheduleRun, now: datetime, turn: Turn
) -> None:
    """Make the batch of a waiting run; or end the run with the reason why not; or let it wait: for
    its source, for room, or for the next turn.
    """
    if not turn.take():
        return
    definition = Definition.model_validate(run.definition)
    if turn.refusal is None:
        _attempt(session, schedule, run, definition, now, turn)
    else:
        _refused(session, schedule, run, definition, now, turn.refusal)
    turn.moved += run.state != RunState.WAITING


def _attempt(
    session: Session,
    schedule: Schedule,
    run: ScheduleRun,
    definition: Definition,
    now: datetime,
    turn: Turn,
) -> None:
    try:
        # A savepoint: a failed attempt leaves nothing but the run itself.
        with session.begin_nested():
            # Before anything is listed or sealed for it: a run that waits for room is looked at
            # every second.
            quotas.admit_batch(session, _owner(schedule))
            batch = batches.create(
                session,
                _owner(schedule),
                input_file_id=_input_file(session, schedule, run, definition),
                endpoint=definition.endpoint,
                completion_window=definition.completion_window,
                metadata=definition.metadata,
                output_expires_after=(
                    None
                    if definition.output_expires_after is None
                    else definition.output_expires_after.seconds
                ),
                execution_window=definition.execution_window,
                on_invalid=definition.on_invalid,
                run=run,
            )
    except (InvalidRequest, NotFound) as error:
        runs.end(
            session, schedule, run, RunState.FAILED, error.code or "invalid_request", error.message
        )
    except _Empty as error:
        _end_empty(session, schedule, run, definition, "empty", str(error))
    except NotReady as error:
        if not _waits(session, run, now, definition, NOT_READY, str(error)):
            _end_empty(
                session,
                schedule,
                run,
                definition,
                NOT_READY,
                f"{error} The run waited for {definition.catch_up_window}.",
            )
    except (TooManyRequests, StorageFull) as error:
        turn.refusal = error
        _refused(session, schedule, run, definition, now, error)
    except storage.UNAVAILABLE as error:
        if run.reason != UNREACHABLE:
            logger.warning(
                "storage.unreachable",
                during="fire",
                schedule_id=schedule.id,
                error=type(error).__name__,
            )
        message = "The server's storage does not answer."
        if not _waits(session, run, now, definition, UNREACHABLE, message):
            message = f"{message} The run waited for {definition.catch_up_window}."
            runs.end(session, schedule, run, RunState.FAILED, UNREACHABLE, message)
    except db.UNAVAILABLE:
        raise
    except Exception as error:
        # A bug of ours: the run fails, and those after it have their turn.
        logger.error(
            "schedule.run_crashed", schedule_id=schedule.id, run_id=run.id, **log.cause(error)
        )
        message = (
            f"The server met an internal error ({type(error).__name__}) when it started the run;"
            " its log has the details."
        )
        runs.end(session, schedule, run, RunState.FAILED, "internal_error", message)
    else:
        run.move(schedule, RunState.RUNNING, now)
        logger.info(
            "schedule.fired",
            schedule_id=schedule.id,
            run_id=run.id,
            batch_id=batch.id,
            trigger=run.trigger,
            lag=runs.lag(run),
        )


def _refused(
    session: Session,
    schedule: Schedule,
    run: ScheduleRun,
    definition: Definition,
    now: datetime,
    error: TooManyRequests | StorageFull,
) -> None:
    """Let a run wait for room, or fail it when it has waited for as long as it may."""
    # Neither error is without a code.
    if not _waits(session, run, now, definition, str(error.code), error.message):
        message = f"{error.message} The run waited for {definition.catch_up_window}."
        runs.end(session, schedule, run, RunState.FAILED, error.code, message)


def moment(run: ScheduleRun, definition: Definition) -> Moment:
    """What the placeholders of a run stand for: its own instant, however late it runs, or the
    moment it was asked for as of.
    """
    return Moment(
        run.as_of or run.scheduled_for, zone(definition.timezone), ids.render("run", run.id)
    )


def _owner(schedule: Schedule) -> Owner:
    return Owner(schedule.account_id, schedule.livemode)


def _input_file(
    session: Session, schedule: Schedule, run: ScheduleRun, definition: Definition
) -> str:
    """The public id of the file the batch reads; one that is still to be put together has no bytes
    yet.
    """
    if definition.input_file_id is not None:
        return definition.input_file_id
    if definition.template_file_id is not None:
        # Gone, it fails the run here and not its batch.
        batches.input_file(session, _owner(schedule), definition.template_file_id)
    elif definition.source is not None:
        manifest = sources.find(session, schedule, definition.source, moment(run, definition))
        if not manifest:
            place = sources.location(_owner(schedule), definition.source)
            raise _Empty(
                f"There was nothing new in {place!r} that matches {definition.source.pattern!r}."
            )
        sources.take(session, schedule, run, manifest)
    elif not inbox.seal(session, schedule, run):
        raise _Empty("No request had arrived.")
    day = (run.as_of or run.scheduled_for).astimezone(zone(definition.timezone)).date()
    file = files.create(
        session,
        _owner(schedule),
        id=ids.new(),
        purpose=Purpose.BATCH,
        filename=f"{definition.name}-{day.isoformat()}.jsonl",
        size=0,
        sha256=None,
    )
    return ids.render("file", file.id)


def _end_empty(
    session: Session,
    schedule: Schedule,
    run: ScheduleRun,
    definition: Definition,
    reason: str,
    message: str,
) -> None:
    what = definition.source or definition.inbox
    is_failure = what is not None and what.on_empty == "fail"
    runs.end(
        session, schedule, run, RunState.FAILED if is_failure else RunState.SKIPPED, reason, message
    )


def _waits(
    session: Session,
    run: ScheduleRun,
    now: datetime,
    definition: Definition,
    reason: str,
    message: str,
) -> bool:
    """Let a run be tried again later. False: it has waited for as long as the catch-up window."""
    since = max(run.scheduled_for, run.created_at)
    if definition.overlap != "allow":
        # It did not look for its source before the run before it had ended.
        before = select(func.max(ScheduleRun.ended_at)).where(
            ScheduleRun.schedule_id == run.schedule_id,
            ScheduleRun.scheduled_for < run.scheduled_for,
            ScheduleRun.fired_at.is_not(None),
        )
        since = max(since, session.scalar(before) or since)
    if misfire.is_too_old(now - since, definition):
        return False
    run.wait(reason, message)
    return True

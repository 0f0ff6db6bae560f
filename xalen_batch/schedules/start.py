"""Start: attempt to make the batch of a waiting run, and return the outcome as a value.

A start pins what the run reads (object versions, requests of the inbox) in the transaction that
makes the batch. The input file is assembled later, by the validation of the batch. `fire` records
the outcome.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from xalen_batch import db, files, ids, log, storage
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.batches import batches
from xalen_batch.errors import InvalidRequest, NotFound, StorageFull, TooManyRequests
from xalen_batch.files import Purpose
from xalen_batch.models import Batch, Schedule, ScheduleRun
from xalen_batch.schedules import inbox, misfire, sources
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.sources import NotReady
from xalen_batch.schedules.templates import Moment
from xalen_batch.schedules.turn import Turn
from xalen_batch.states import RunState
from xalen_batch.timezones import zone

logger = log.get(__name__)

NOT_READY = "not_ready"
UNREACHABLE = "storage_unreachable"
# Reasons that hold one run only: the runs behind it may still start.
OF_ITS_SOURCE = frozenset({NOT_READY, UNREACHABLE})


@dataclass(frozen=True, slots=True)
class Started:
    """The run has a batch."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Waits:
    """The run is attempted again in a later turn.

    `ends_as`: the run's state once it has waited for its catch-up window.
    """

    reason: str | None
    message: str | None
    ends_as: RunState = RunState.FAILED


@dataclass(frozen=True, slots=True)
class Ended:
    """The run ends without a batch. `reason` is a code."""

    state: RunState
    reason: str
    message: str


StartOutcome = Started | Waits | Ended


class _Empty(Exception):
    """The source or inbox holds nothing to run."""


def start(
    session: Session, schedule: Schedule, run: ScheduleRun, now: datetime, turn: Turn
) -> StartOutcome:
    """Attempt to make the batch of a waiting run. Leaves the run's row to the caller.

    Uses up one of the turn's attempts; without one the run waits as before. Called on the thread
    that fires, or a request's thread. Raises db.UNAVAILABLE.
    """
    if not turn.take():
        return Waits(run.reason, run.message)
    definition = Definition.model_validate(run.definition)
    outcome: StartOutcome
    if turn.refusal is None:
        outcome = _attempt(session, schedule, run, definition, turn)
    else:
        outcome = _refused(turn.refusal)
    if isinstance(outcome, Waits) and _has_timed_out(session, run, definition, now):
        message = f"{outcome.message} The run waited for {definition.catch_up_window}."
        outcome = Ended(outcome.ends_as, str(outcome.reason), message)
    turn.moved += not isinstance(outcome, Waits)
    return outcome


def _attempt(
    session: Session, schedule: Schedule, run: ScheduleRun, definition: Definition, turn: Turn
) -> StartOutcome:
    outcome: StartOutcome
    try:
        # A savepoint: a failed attempt undoes its rows and releases the account's lock.
        with session.begin_nested():
            # Check the quota first: each second, waiting runs are attempted again, and a refused
            # attempt must be cheap.
            quotas.admit_batch(session, _owner(schedule))
            outcome = Started(_create_batch(session, schedule, run, definition))
    except (InvalidRequest, NotFound) as error:
        outcome = Ended(RunState.FAILED, error.code or "invalid_request", error.message)
    except _Empty as error:
        outcome = Ended(_state_if_empty(definition), "empty", str(error))
    except NotReady as error:
        outcome = Waits(NOT_READY, str(error), _state_if_empty(definition))
    except (TooManyRequests, StorageFull) as error:
        turn.refusal = error
        outcome = _refused(error)
    except storage.UNAVAILABLE as error:
        if run.reason != UNREACHABLE:
            logger.warning(
                "storage.unreachable",
                during="fire",
                schedule_id=schedule.id,
                error=type(error).__name__,
            )
        outcome = Waits(UNREACHABLE, "The server's storage does not answer.")
    except db.UNAVAILABLE:
        raise
    except Exception as error:
        # A bug of ours fails this run only; the runs behind it still start.
        logger.error(
            "schedule.run_crashed", schedule_id=schedule.id, run_id=run.id, **log.cause(error)
        )
        message = (
            f"The server met an internal error ({type(error).__name__}) when it started the run;"
            " its log has the details."
        )
        outcome = Ended(RunState.FAILED, "internal_error", message)
    return outcome


def _create_batch(
    session: Session, schedule: Schedule, run: ScheduleRun, definition: Definition
) -> Batch:
    expiry = definition.output_expires_after
    return batches.create(
        session,
        _owner(schedule),
        input_file_id=_input_file(session, schedule, run, definition),
        endpoint=definition.endpoint,
        completion_window=definition.completion_window,
        metadata=definition.metadata,
        output_expires_after=None if expiry is None else expiry.seconds,
        execution_window=definition.execution_window,
        on_invalid=definition.on_invalid,
        run=run,
    )


def _input_file(
    session: Session, schedule: Schedule, run: ScheduleRun, definition: Definition
) -> str:
    """The public id of the batch's input file. A file that is assembled later has no bytes yet."""
    if definition.input_file_id is not None:
        return definition.input_file_id
    _pin(session, schedule, run, definition)
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


def _pin(session: Session, schedule: Schedule, run: ScheduleRun, definition: Definition) -> None:
    """Fix what the run reads: a template, objects of a source, or requests of the inbox.

    NotFound if the template is gone; _Empty, NotReady and the errors of `sources.find`.
    """
    if definition.template_file_id is not None:
        batches.input_file(session, _owner(schedule), definition.template_file_id)
    elif definition.source is not None:
        manifest = sources.find(session, schedule, definition.source, moment(run, definition))
        if not manifest:
            place = sources.location(_owner(schedule), definition.source)
            raise _Empty(
                f"There was nothing new in {place!r} that matches {definition.source.pattern!r}."
            )
        sources.take(session, schedule, run, manifest)
    elif not inbox.assign(session, schedule, run):
        raise _Empty("No request had arrived.")


def moment(run: ScheduleRun, definition: Definition) -> Moment:
    """The values of a run's placeholders: of `as_of` if given, else of its instant."""
    return Moment(
        run.as_of or run.scheduled_for, zone(definition.timezone), ids.render("run", run.id)
    )


def _refused(refusal: TooManyRequests | StorageFull) -> Waits:
    """The run waits for a quota or for disk space. Both errors have a code."""
    return Waits(str(refusal.code), refusal.message)


def _state_if_empty(definition: Definition) -> RunState:
    what = definition.source or definition.inbox
    is_failure = what is not None and what.on_empty == "fail"
    return RunState.FAILED if is_failure else RunState.SKIPPED


def _has_timed_out(
    session: Session, run: ScheduleRun, definition: Definition, now: datetime
) -> bool:
    """Whether a run has waited for longer than its catch-up window."""
    since = max(run.scheduled_for, run.created_at)
    if definition.overlap != "allow":
        # Runs are attempted one after another: the wait begins when the run before has ended.
        previous = select(func.max(ScheduleRun.ended_at)).where(
            ScheduleRun.schedule_id == run.schedule_id,
            ScheduleRun.scheduled_for < run.scheduled_for,
            ScheduleRun.fired_at.is_not(None),
        )
        since = max(since, session.scalar(previous) or since)
    return misfire.is_too_old(now - since, definition)


def _owner(schedule: Schedule) -> Owner:
    return Owner(schedule.account_id, schedule.livemode)

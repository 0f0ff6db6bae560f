"""Runs: how each one is recorded, how it ends, and how it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased, defer

from xalen_batch import batches, db, ids, log, paging
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.accounts.quotas import Quota
from xalen_batch.config import settings
from xalen_batch.errors import TooManyRequests
from xalen_batch.models import Batch, ConsumedObject, Invoice, Schedule, ScheduleRun
from xalen_batch.paging import Page
from xalen_batch.schedules import inbox
from xalen_batch.schedules.definition import Definition
from xalen_batch.states import OPEN_RUNS, TERMINAL, BatchStatus, RunState, ScheduleStatus

logger = log.get(__name__)

# How many of a schedule's latest runs are told with it.
RECENT = 14
# Runs that one transaction brings to their ends.
ENDED_AT_ONCE = 100


class Trigger(StrEnum):
    SCHEDULE = "schedule"
    MANUAL = "manual"
    BACKFILL = "backfill"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The batch of a run, and what it cost: exact USD, None before its invoice is issued.

    `opens_at`: when the execution window opens that the batch waits for.
    """

    batch_id: UUID | None = None
    cost: Decimal | None = None
    opens_at: datetime | None = None


def unended(session: Session, schedule: Schedule) -> list[ScheduleRun]:
    """A schedule's runs that have not ended, the oldest instant first.

    Runs whose batches have ended are ended here, ENDED_AT_ONCE of them; the rest have their turn
    later, and are in the list no more.
    """
    rows = (
        select(ScheduleRun, Batch.status)
        .outerjoin(Batch, Batch.run_id == ScheduleRun.id)
        .where(ScheduleRun.schedule_id == schedule.id, ScheduleRun.state.in_(OPEN_RUNS))
        .order_by(ScheduleRun.scheduled_for)
        .options(defer(ScheduleRun.manifest))
    )
    found = session.execute(rows).all()
    over = [run for run, status in found if run.state == RunState.RUNNING and status in TERMINAL]
    _end_with_batches(session, schedule, over[:ENDED_AT_ONCE])
    ended = {run.id for run in over}
    return [run for run, _ in found if run.id not in ended]


def _end_with_batches(session: Session, schedule: Schedule, over: Sequence[ScheduleRun]) -> None:
    if not over:
        return
    rows = (
        select(Batch)
        .where(Batch.run_id.in_([run.id for run in over]))
        .options(defer(Batch.price_snapshot))
    )
    of_runs = {batch.run_id: batch for batch in session.scalars(rows)}
    for run in over:
        batch = of_runs[run.id]
        end(session, schedule, run, *_verdict(batch))
        if batch.status == BatchStatus.FAILED:
            # Nothing of them has run: the next run takes them again, and requests that are in no
            # file.
            session.execute(
                delete(ConsumedObject).where(
                    ConsumedObject.schedule_id == schedule.id, ConsumedObject.run_id == run.id
                )
            )
            if schedule.deleted_at is None:
                # Lock order: the account's lock before its tally of the inbox, which this changes.
                quotas.lock(session, Owner(schedule.account_id, schedule.livemode))
                inbox.unseal(session, run)


def _verdict(batch: Batch) -> tuple[RunState, str | None, str | None]:
    name = ids.render("batch", batch.id)
    match BatchStatus(batch.status):
        case BatchStatus.COMPLETED if batch.completed or not batch.total:
            return RunState.SUCCEEDED, None, None
        case BatchStatus.COMPLETED:
            return (
                RunState.FAILED,
                "no_line_succeeded",
                f"No request of {name} succeeded; its error file says why.",
            )
        case BatchStatus.FAILED if (error := _quota_error(batch)) is not None:
            return RunState.FAILED, error["code"], f"{name} did not start. {error['message']}"
        case BatchStatus.FAILED:
            return (
                RunState.FAILED,
                "batch_failed",
                f"{name} did not pass validation; its `errors` name every line.",
            )
        case BatchStatus.EXPIRED:
            left = batch.total - batch.completed
            return (
                RunState.FAILED,
                "batch_expired",
                (
                    f"{name} ran out of its completion window; {left:,} of {batch.total:,} requests"
                    " did not succeed."
                ),
            )
        case _:
            return RunState.CANCELLED, "batch_cancelled", f"{name} was cancelled."


def _quota_error(batch: Batch) -> dict[str, Any] | None:
    """What a batch failed for that had no fault of its own."""
    return next(
        (error for error in batch.errors or () if error["code"] in quotas.FAULTS.values()), None
    )


def end(
    session: Session,
    schedule: Schedule,
    run: ScheduleRun,
    to: RunState,
    reason: str | None = None,
    message: str | None = None,
) -> None:
    """Bring a run to its end, count it, and pause its schedule after too many failures in a row."""
    now = db.now(session)
    run.move(schedule, to, now, reason=reason, message=message)
    fields = {
        "schedule_id": schedule.id,
        "run_id": run.id,
        "scheduled_for": run.scheduled_for.isoformat(),
        "reason": reason,
    }
    if to is RunState.SUCCEEDED:
        schedule.failures = 0
        logger.info("schedule.run_succeeded", **fields)
        return
    # An empty night is nothing to be warned of where its owner says so.
    write = logger.info if (to, reason) == (RunState.SKIPPED, "empty") else logger.warning
    write("schedule.run_not_succeeded", state=to.value, **fields)
    if to is RunState.FAILED:
        schedule.failures += 1
        _pause_if_failing(schedule, now)


def _pause_if_failing(schedule: Schedule, now: datetime) -> None:
    most = Definition.model_validate(schedule.definition).pause_on_failure
    if most is None or schedule.failures < most or schedule.status != ScheduleStatus.ACTIVE:
        return
    note = (
        f"{schedule.failures} runs in a row failed." if schedule.failures > 1 else "A run failed."
    )
    schedule.pause(now, f"{note} Paused by pause_on_failure: {most}.")
    logger.warning("schedule.paused", schedule_id=schedule.id, failures=schedule.failures)


def refuse_to_wait(session: Session, schedule: Schedule, *, new: int) -> TooManyRequests | None:
    """Why `new` runs that were just recorded may not wait: too many of the schedule do, or of its
    account. None: they may.

    Takes the account's lock.
    """
    session.flush()
    owner = Owner(schedule.account_id, schedule.livemode)
    quotas.lock(session, owner)
    if excess := quotas.excess(session, owner, {Quota.WAITING_RUNS: new}, is_recorded=True):
        return excess.refusal()
    of_schedule = select(func.count()).where(
        ScheduleRun.schedule_id == schedule.id, ScheduleRun.state == RunState.WAITING
    )
    held, most = session.execute(of_schedule).scalar_one() - new, settings().schedule_waiting_runs
    if held + new <= most:
        return None
    message = (
        f"Schedule {ids.render('sched', schedule.id)} has {held:,} runs that wait to start, and"
        f" this would add {new:,}; the most is {most:,}. Wait until some have started, or pause the"
        " schedule and find out why they wait: GET /v1/schedules/{id}/runs?state=waiting."
    )
    return TooManyRequests(
        message, retry_after=quotas.RETRY_AFTER, code=f"{Quota.WAITING_RUNS}_limit"
    )


def page(
    session: Session, schedule_id: UUID, *, state: RunState | None, limit: int, after: str | None
) -> Page[ScheduleRun]:
    """A schedule's runs, the newest first."""
    rows = select(ScheduleRun).where(ScheduleRun.schedule_id == schedule_id)
    if state is not None:
        rows = rows.where(ScheduleRun.state == state)
    return paging.page(session, rows, ScheduleRun.id, "run", limit=limit, order="desc", after=after)


def outcomes(session: Session, runs: Sequence[ScheduleRun]) -> dict[UUID, Outcome]:
    """The batch and the cost of each run."""
    now = db.now(session)
    rows = session.execute(
        select(Batch, Invoice.total)
        .outerjoin(Invoice, Invoice.batch_id == Batch.id)
        .where(Batch.run_id.in_([run.id for run in runs]))
        .options(defer(Batch.errors))
    )
    found = {batch.run_id: Outcome(batch.id, total, _opens_at(batch, now)) for batch, total in rows}
    return {run.id: found.get(run.id, Outcome()) for run in runs}


def _opens_at(batch: Batch, now: datetime) -> datetime | None:
    interval = batches.interval(batch, now)
    return interval[0] if interval is not None and now < interval[0] else None


def recent(session: Session, schedules: Sequence[Schedule]) -> dict[UUID, list[ScheduleRun]]:
    """The latest runs of each schedule by the instants they are for, the oldest first."""
    found: dict[UUID, list[ScheduleRun]] = {schedule.id: [] for schedule in schedules}
    # One after another by the key of their instants; a sort of all runs would grow with every
    # night.
    of_one = (
        select(ScheduleRun)
        .where(ScheduleRun.schedule_id == Schedule.id)
        .order_by(ScheduleRun.scheduled_for.desc())
        .limit(RECENT)
    )
    latest = aliased(ScheduleRun, of_one.correlate(Schedule).lateral())
    rows = (
        select(latest)
        .select_from(Schedule)
        .join(latest, true())
        .where(Schedule.id.in_(found))
        .order_by(latest.scheduled_for)
    )
    for run in session.scalars(rows):
        found[run.schedule_id].append(run)
    return found


def lag(run: ScheduleRun) -> float | None:
    """Seconds from the instant to the creation of its batch; jitter, waiting and lateness all
    count.
    """
    return None if run.fired_at is None else (run.fired_at - run.scheduled_for).total_seconds()


def blank(
    schedule: Schedule,
    scheduled_for: datetime,
    trigger: Trigger,
    state: RunState,
    *,
    as_of: datetime | None = None,
) -> dict[str, object]:
    """The columns of a new run, with what the schedule says now."""
    return {
        "id": ids.new(),
        "schedule_id": schedule.id,
        "scheduled_for": scheduled_for,
        "as_of": as_of,
        "trigger": trigger.value,
        "state": state.value,
        "definition": schedule.definition,
    }


def record(session: Session, rows: Sequence[dict[str, object]]) -> list[ScheduleRun]:
    """New runs, in order; an instant that has a run already is left as it is."""
    if not rows:
        return []
    # By the clock that decides what is late, whatever the column's default goes by.
    statement = (
        insert(ScheduleRun)
        .values(created_at=func.now())
        .on_conflict_do_nothing()
        .returning(ScheduleRun)
    )
    made = session.scalars(statement, list(rows)).all()
    return sorted(made, key=lambda run: run.scheduled_for)

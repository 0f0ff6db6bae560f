"""Runs: record them, end them, and read them for the API."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased, defer

from xalen_batch import db, events, ids, log, paging
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.accounts.quotas import Quota
from xalen_batch.batches import batches
from xalen_batch.config import settings
from xalen_batch.errors import TooManyRequests
from xalen_batch.events import Happened
from xalen_batch.metrics import counted
from xalen_batch.models import Batch, ConsumedObject, Invoice, Schedule, ScheduleRun
from xalen_batch.models.events import EventType
from xalen_batch.paging import Page
from xalen_batch.schedules import inbox, misfire
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.misfire import Miss
from xalen_batch.states import OPEN_RUNS, TERMINAL, BatchStatus, RunState, ScheduleStatus

logger = log.get(__name__)

# Latest runs that the API shows with a schedule.
RECENT = 14
# Runs that one transaction ends.
ENDED_AT_ONCE = 100
# New rules of a time zone make a fire earlier by at most this.
LONGEST_SHIFT = timedelta(hours=3)


class Trigger(StrEnum):
    SCHEDULE = "schedule"
    MANUAL = "manual"
    BACKFILL = "backfill"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The batch of a run and its exact cost in USD, None before the invoice is issued.

    `opens_at`: the opening of the execution window that the batch waits for.
    """

    batch_id: UUID | None = None
    cost: Decimal | None = None
    opens_at: datetime | None = None


def unended(session: Session, schedule: Schedule) -> list[ScheduleRun]:
    """A schedule's open runs whose batches have not ended, the oldest instant first.

    Ends runs whose batches have ended, at most ENDED_AT_ONCE; the next turns end the others.
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
    if over:
        _end_with_batches(session, schedule, over[:ENDED_AT_ONCE])
    ended = {run.id for run in over}
    return [run for run, _ in found if run.id not in ended]


def _end_with_batches(session: Session, schedule: Schedule, over: Sequence[ScheduleRun]) -> None:
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
            # No line has run: the next run takes the objects again, and the requests that are in
            # no file.
            session.execute(
                delete(ConsumedObject).where(
                    ConsumedObject.schedule_id == schedule.id, ConsumedObject.run_id == run.id
                )
            )
            if schedule.deleted_at is None:
                # Lock order: the account's lock before its tally, which a trigger updates.
                quotas.lock(session, Owner(schedule.account_id, schedule.livemode))
                inbox.release(session, run)


def _verdict(batch: Batch) -> tuple[RunState, str | None, str | None]:
    """The state, reason and message of a run whose batch has ended."""
    name = ids.render("batch", batch.id)
    match BatchStatus(batch.status):
        case BatchStatus.COMPLETED if batch.completed or not batch.total:
            return RunState.SUCCEEDED, None, None
        case BatchStatus.COMPLETED:
            reason = "no_line_succeeded"
            message = f"No request of {name} succeeded; its error file says why."
        case BatchStatus.FAILED:
            error = _quota_error(batch)
            if error is None:
                reason = "batch_failed"
                message = f"{name} did not pass validation; its `errors` name every line."
            else:
                reason, message = error["code"], f"{name} did not start. {error['message']}"
        case BatchStatus.EXPIRED:
            reason = "batch_expired"
            left = batch.total - batch.completed
            message = (
                f"{name} ran out of its completion window; {left:,} of {batch.total:,} requests"
                " did not succeed."
            )
        case _:
            return RunState.CANCELLED, "batch_cancelled", f"{name} was cancelled."
    return RunState.FAILED, reason, message


def _quota_error(batch: Batch) -> dict[str, Any] | None:
    """The batch's error if it failed by a quota and not by its own lines."""
    codes = quotas.FAULTS.values()
    return next((error for error in batch.errors or () if error["code"] in codes), None)


def end(
    session: Session,
    schedule: Schedule,
    run: ScheduleRun,
    to: RunState,
    reason: str | None = None,
    message: str | None = None,
) -> None:
    """End a run and count it. Pause the schedule after too many failed runs in a row."""
    now = db.now(session)
    run.move(schedule, to, now, reason=reason, message=message)
    counted.SCHEDULE_RUNS.labels(to.value).inc()
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
    # Not a warning: with `on_empty: skip` its owner expects empty nights.
    write = logger.info if (to, reason) == (RunState.SKIPPED, "empty") else logger.warning
    write("schedule.run_not_succeeded", state=to.value, **fields)
    if to is RunState.FAILED:
        events.record(session, schedule, Happened(EventType.RUN_FAILED, run.id))
        schedule.failures += 1
        _pause_if_failing(schedule, now)


def _pause_if_failing(schedule: Schedule, now: datetime) -> None:
    most = Definition.model_validate(schedule.definition).pause_on_failure
    if most is None or schedule.failures < most or schedule.status != ScheduleStatus.ACTIVE:
        return
    note = "A run failed."
    if schedule.failures > 1:
        note = f"{schedule.failures} runs in a row failed."
    schedule.pause(now, f"{note} Paused by pause_on_failure: {most}.")
    logger.warning("schedule.paused", schedule_id=schedule.id, failures=schedule.failures)


def refuse_to_wait(session: Session, schedule: Schedule, *, new: int) -> TooManyRequests | None:
    """The refusal of `new` runs that were just recorded as waiting; None if they may wait.

    Both the account and the schedule have a cap of waiting runs. Takes the account's lock.
    """
    session.flush()
    owner = Owner(schedule.account_id, schedule.livemode)
    quotas.lock(session, owner)
    excess = quotas.excess(session, owner, {Quota.WAITING_RUNS: new}, is_recorded=True)
    if excess is not None:
        return excess.refusal()
    of_schedule = select(func.count()).where(
        ScheduleRun.schedule_id == schedule.id, ScheduleRun.state == RunState.WAITING
    )
    held = session.execute(of_schedule).scalar_one() - new
    most = settings().schedule_waiting_runs
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
    """The latest runs of each schedule by their instants, the oldest first."""
    found: dict[UUID, list[ScheduleRun]] = {schedule.id: [] for schedule in schedules}
    # LATERAL with LIMIT: a few index entries of each schedule. A sort would read all its runs.
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


def last_fired(session: Session, schedule: Schedule, first: datetime) -> datetime:
    """A time before which no instant of a schedule is lost if its zone's rules have changed."""
    last = session.scalar(
        select(func.max(ScheduleRun.scheduled_for)).where(
            ScheduleRun.schedule_id == schedule.id,
            ScheduleRun.trigger == Trigger.SCHEDULE,
            ScheduleRun.scheduled_for < first,
        )
    )
    return max(last or schedule.updated_at, schedule.updated_at, first - LONGEST_SHIFT)


def add(
    session: Session,
    schedule: Schedule,
    scheduled_for: datetime,
    trigger: Trigger,
    *,
    as_of: datetime | None = None,
) -> ScheduleRun | None:
    """Record a new run that waits. None if its instant has a run already."""
    row = blank(schedule, scheduled_for, trigger, RunState.WAITING, as_of=as_of)
    recorded = record(session, [row])
    return recorded[0] if recorded else None


def record_missed(
    session: Session, schedule: Schedule, missed: Sequence[tuple[datetime, Miss]], now: datetime
) -> None:
    """Record instants as missed, each with its reason, and count them."""
    rows = [
        blank(schedule, instant, Trigger.SCHEDULE, RunState.MISSED)
        | {"reason": reason.value, "message": misfire.MESSAGES[reason], "ended_at": now}
        for instant, reason in missed
    ]
    recorded = record(session, rows)
    if recorded:
        schedule.count(RunState.MISSED, len(recorded))
        events.record(
            session, schedule, *(Happened(EventType.RUN_MISSED, run.id) for run in recorded)
        )
        logger.warning(
            "schedule.run_missed",
            schedule_id=schedule.id,
            number=len(recorded),
            first=min(run.scheduled_for for run in recorded).isoformat(),
            last=max(run.scheduled_for for run in recorded).isoformat(),
            reasons=sorted({str(run.reason) for run in recorded}),
        )


def blank(
    schedule: Schedule,
    scheduled_for: datetime,
    trigger: Trigger,
    state: RunState,
    *,
    as_of: datetime | None = None,
) -> dict[str, object]:
    """The columns of a new run, with the schedule's present definition."""
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
    """Insert runs, and return those inserted, oldest first.

    The unique key skips an instant that has a run already.
    """
    if not rows:
        return []
    # Set here: a test's clock replaces now() in statements, but not in the column's default.
    statement = (
        insert(ScheduleRun)
        .values(created_at=func.now())
        .on_conflict_do_nothing()
        .returning(ScheduleRun)
    )
    made = session.scalars(statement, list(rows)).all()
    return sorted(made, key=lambda run: run.scheduled_for)

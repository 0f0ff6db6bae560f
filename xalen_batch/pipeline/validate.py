"""Validate: read a batch's input file, then fail the batch with its errors or insert its tasks."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from math import ceil
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    Boolean,
    ColumnElement,
    DateTime,
    Double,
    and_,
    bindparam,
    column,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session

from xalen_batch import catalog, db, disk, log, storage
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.accounts.quotas import Excess, Quota
from xalen_batch.batches import batches
from xalen_batch.broker import Job
from xalen_batch.config import settings
from xalen_batch.models import Batch, File, ScheduleRun, Task, partitions
from xalen_batch.models.base import table_of
from xalen_batch.pipeline import announce, fairness, record, retry_input
from xalen_batch.schedules.assemble import Assembled, assemble, traced
from xalen_batch.states import BatchStatus, OnInvalid, TaskState
from xalen_batch.storage import marks
from xalen_batch.validation import read
from xalen_batch.validation.errors import Fault, Faults, refused
from xalen_batch.validation.read import Reading
from xalen_batch.validation.split import Split

logger = log.get(__name__)

# Seconds between two extensions of the lease, at most a third of the lease.
EXTEND_EVERY = 10.0
# Messages for a new batch: one for each LINES_PER_HINT lines, at most MOST_HINTS. Each wakes one
# worker process, which then fills its slots by itself.
LINES_PER_HINT, MOST_HINTS = 200, 8
# Worker crashes while a file is read, after which the lease grows: from there on each crash doubles
# it, MOST_DOUBLINGS times, to about an hour. So a file that crashes its readers does that some
# thirty times a day, and no more after its batch's deadline.
USUAL_CRASHES = 4
MOST_DOUBLINGS = 6

FILE_GONE = Fault(
    "file_not_found",
    "The input file is gone: it was deleted or it expired. Upload it again.",
    param="input_file_id",
)


# Appended to the first error of a batch that also has valid lines.
OTHER_LINES = ' With `on_invalid: "skip"`, the other lines run.'


class _LeaseLost(Exception):
    """The batch was cancelled, or another worker validates it now."""


@dataclass(frozen=True, slots=True)
class _Lease:
    """A lease to validate a batch, valid until a higher fence or a cancel.

    `crashes`: the number of worker crashes during validation, this worker's counted in advance.
    Methods run on the thread of the validating job.
    """

    batch_id: UUID
    fence: int
    crashes: int

    @property
    def holds(self) -> ColumnElement[bool]:
        return and_(
            Batch.id == self.batch_id,
            Batch.fence == self.fence,
            Batch.status == BatchStatus.VALIDATING,
        )

    def take(self, session: Session) -> Batch:
        """Lock and return the batch until this transaction ends. Raises _LeaseLost."""
        batch = session.scalars(select(Batch).where(self.holds).with_for_update()).one_or_none()
        if batch is None:
            raise _LeaseLost
        return batch

    def extend(self) -> None:
        """Extend the lease. Raises _LeaseLost."""
        self._set(lease_until=_lease_end(self.crashes))

    def survive(self) -> None:
        """Take the crash back that was counted in advance: this worker failed, but did not crash.

        Raises _LeaseLost.
        """
        self._set(losses=Batch.losses - 1, lease_until=_lease_end(1))

    def _set(self, **values: Any) -> None:
        with db.transaction() as session:
            row = session.execute(
                update(Batch).where(self.holds).values(values).returning(Batch.id)
            ).one_or_none()
            if row is None:
                raise _LeaseLost


def run(batch_id: UUID) -> None:
    """Move a batch from validating to in_progress or failed.

    Does nothing if another worker validates or has validated the batch, while a disk is short of
    space, or if this process does not see the store.
    """
    if disk.short() or not marks.is_here():
        return
    started = time.monotonic()
    taken = _take(batch_id)
    if taken is None:
        return
    batch, lease, has_input, now = taken
    fault = _given_up(batch, now)
    owner = Owner(batch.account_id, batch.livemode)
    try:
        _make_partition(partitions.day(batch_id))
        if fault is None and not has_input:
            fault = _assemble(batch, lease, owner)
        found = _read(batch, lease) if fault is None else Reading(faults=Faults([fault]))
        with db.transaction() as session:
            # Lock order: the account's quotas before the row of the batch (`quotas.lock`).
            quotas.lock(session, owner)
            _decide(session, batch, lease, found)
    except _LeaseLost:
        return
    except Exception:
        with suppress(*db.UNAVAILABLE, _LeaseLost):
            lease.survive()
        raise
    if found.faults:
        logger.info("batch.rejected", batch_id=batch_id, errors=found.faults.count)
        return
    elapsed = round((time.monotonic() - started) * 1000)
    lines = {"lines": found.split.lines, "skipped": len(found.skipped)}
    logger.info(
        "batch.validated", batch_id=batch_id, **lines, models=found.split.models, ms=elapsed
    )


@cache
def _make_partition(day: date) -> None:
    """Make the partition of the day's results: after a standstill no sweep has made it."""
    with db.transaction() as session:
        partitions.make(session, day)


def _take(batch_id: UUID) -> tuple[Batch, _Lease, bool, datetime] | None:
    """Lease a batch.

    Returns it, its lease, whether its input file is ready, and the time by PostgreSQL's clock.
    """
    with db.autocommit() as session:
        row = session.execute(
            _TAKE, {"batch_id": batch_id, "lease": settings().lease}
        ).one_or_none()
    if row is None:
        return None
    batch, has_input, now = row
    return batch, _Lease(batch_id, batch.fence, batch.losses), has_input, now


def _lease_end(
    crashes: int | ColumnElement[int], lease: float | BindParameter[float] | None = None
) -> ColumnElement[Any]:
    """When a lease taken now ends: exponential back-off after USUAL_CRASHES crashes.

    `lease`: seconds; None: those of the settings.
    """
    doublings = func.least(func.greatest(crashes - USUAL_CRASHES, 0), MOST_DOUBLINGS)
    seconds = func.power(2, doublings) * (settings().lease if lease is None else lease)
    return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


# Built once, since every batch runs it.
_BATCHES = table_of(Batch).c
_HAS_INPUT, _NOW = column("has_input", Boolean), column("taken_at", DateTime(timezone=True))
_TAKE = select(Batch, _HAS_INPUT, _NOW).from_statement(
    update(table_of(Batch))
    .where(
        _BATCHES.id == bindparam("batch_id"),
        _BATCHES.status == BatchStatus.VALIDATING.value,
        or_(_BATCHES.lease_until.is_(None), _BATCHES.lease_until < func.now()),
    )
    .values(
        lease_until=_lease_end(_BATCHES.losses + 1, bindparam("lease", type_=Double)),
        fence=_BATCHES.fence + 1,
        losses=_BATCHES.losses + 1,
    )
    .returning(
        *_BATCHES,
        # An input file is an upload or an output file (`files.is_ready`).
        select(or_(File.sha256.is_not(None), File.batch_id.is_not(None)))
        .where(File.id == _BATCHES.input_file_id)
        .scalar_subquery()
        .label("has_input"),
        func.now().label("taken_at"),
    )
)


def _given_up(batch: Batch, now: datetime) -> Fault | None:
    """The fault of a file that crashed its readers until the deadline; None: read it once more."""
    if batch.losses <= USUAL_CRASHES or batch.expires_at > now:
        return None
    message = (
        f"The file was not read to its end within the completion window: {batch.losses - 1} workers"
        " were lost while they read it. Split it into several files and upload them again, or ask"
        " the operator, whose workers' logs tell more."
    )
    return Fault("file_not_readable", message, param="input_file_id")


def _assemble(batch: Batch, lease: _Lease, owner: Owner) -> Fault | None:
    """Assemble the input file of a schedule's run or of a retry, unless that is done.

    Returns the fault if it cannot be assembled. Raises _LeaseLost.
    """
    found: Assembled | retry_input.Written | Fault | None
    if batch.retry_of is None:
        found = assemble(batch, lease.extend)
    else:
        found = retry_input.assemble(batch, meanwhile=_extending(lease), extend=lease.extend)
    if found is None or isinstance(found, Fault):
        return found
    with db.transaction() as session:
        quotas.lock(session, owner)
        lease.take(session)
        grown = found.uncounted(session)
        excess = quotas.excess(session, owner, {Quota.STORAGE_BYTES: grown}) if grown > 0 else None
        if excess is None:
            found.count(session)
            return None
        # The row of the file says that it has no bytes. Deleted under the lease, so these are not
        # the bytes of another worker that assembles the file.
        storage.delete(storage.key(found.file_id))
    return _over_quota(excess)


def _read(batch: Batch, lease: _Lease) -> Reading:
    """Read the whole file; no transaction is open.

    Raises _LeaseLost, and marks.Elsewhere while the store is unavailable.
    """
    key = storage.key(batch.input_file_id)
    # The API that created the batch may know a model that was just added to the catalog's file.
    models = catalog.knowing(batch.price_snapshot)
    try:
        skips = batch.on_invalid == OnInvalid.SKIP
        found = read.read(
            key, endpoint=batch.endpoint, models=models, skips=skips, meanwhile=_extending(lease)
        )
    except FileNotFoundError:
        marks.confirm_gone(key)
        return Reading(faults=Faults([FILE_GONE]))
    terms = batches.terms(batch)
    for model in found.split.models:
        fault = refused(model, terms)
        if fault is not None:
            found.faults.add(fault)
    return found


def _extending(lease: _Lease) -> Callable[[], None]:
    """A function that extends the lease if that is due, so callers may call it for every chunk.

    It raises _LeaseLost.
    """
    pause = min(EXTEND_EVERY, settings().lease / 3)
    due = time.monotonic() + pause

    def extend() -> None:
        nonlocal due
        if time.monotonic() >= due:
            lease.extend()
            due = time.monotonic() + pause

    return extend


def _decide(session: Session, batch: Batch, lease: _Lease, found: Reading) -> None:
    """Fail the batch, or insert its tasks and start it. Raises _LeaseLost."""
    split = found.split
    if not found.faults:
        excess = quotas.admit_lines(
            session, Owner(batch.account_id, batch.livemode), lines=split.lines, tokens=split.tokens
        )
        found.faults = Faults([_over_quota(excess)] if excess else [])
    run = None if batch.run_id is None else session.get_one(ScheduleRun, batch.run_id)
    manifest = [] if run is None else run.manifest or []
    if found.faults:
        errors = traced(found.faults, manifest).render()
        if batch.on_invalid == OnInvalid.FAIL and split.lines and found.faults.are_of_lines:
            errors[0]["message"] += OTHER_LINES
        if not batch.move(session, BatchStatus.FAILED, fence=lease.fence, errors=errors):
            raise _LeaseLost
        announce.ended(session, batch)
        return
    # Before the move, after which the account itself is served.
    fairness.forget_idle_time(session, batch.account_id)
    # Locks the row, so a cancel waits until this commits.
    has_moved = batch.move(
        session,
        BatchStatus.IN_PROGRESS,
        fence=lease.fence,
        total=split.lines + len(found.skipped),
        failed=len(found.skipped),
        enqueued_tokens=split.tokens,
        model=split.models[0] if len(split.models) == 1 else None,
    )
    if not has_moved:
        raise _LeaseLost
    _insert(session, batch.id, split)
    if found.skipped:
        _skip(session, batch.id, split.lines, traced(Faults(list(found.skipped)), manifest).kept)
    db.enqueue(session, Job.EXECUTE)
    for number in range(1, min(MOST_HINTS, ceil(batch.total / LINES_PER_HINT))):
        db.enqueue(session, Job.EXECUTE, str(number))


_INSERT = insert(table_of(Task))


def _insert(session: Session, batch_id: UUID, split: Split) -> None:
    """Insert the tasks of a batch.

    `seq` is the position of the first line. A task owns every position up to the next task, so a
    claim that splits it can number the second half by `seq` and the lines taken.
    """
    rows = [
        {
            "batch_id": batch_id,
            "seq": slice.position,
            "model": slice.model,
            "lines": slice.lines,
            "line_index": slice.index,
        }
        for slice in split.slices()
    ]
    if rows:
        session.execute(_INSERT, rows)


def _skip(session: Session, batch_id: UUID, position: int, faults: Sequence[Fault]) -> None:
    """Record invalid lines as failed, in a task that is done when it is inserted.

    So the counts and sizes of a batch are sums over its tasks, with skipped lines too.
    """
    rows = [
        record.Row(
            # The model of an invalid line may be missing or wrong.
            record.LineRef(batch_id, fault.line or 0, "", fault.custom_id or ""),
            error_code=fault.code,
            error_message=f"{fault.param}: {fault.message}" if fault.param else fault.message,
        )
        for fault in faults
    ]
    done = {
        "batch_id": batch_id,
        "seq": position,
        "model": "",
        "state": TaskState.DONE,
        "lines": len(rows),
        "line_index": b"",
    }
    session.execute(
        insert(Task), [done | {name: value for name, value in record.counts(rows).items() if value}]
    )
    record.insert(session, rows)


def _over_quota(excess: Excess) -> Fault:
    """The fault of a file that exceeds the account's quota."""
    return Fault(excess.fault_code, excess.message)

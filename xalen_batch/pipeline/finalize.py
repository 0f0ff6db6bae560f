"""Finalize: fix the counts of a batch, issue its invoice and move it to its terminal status.

A batch is finalized when none of its lines will run any more. That is cheap if every line has a
result, since output files are views over results until the batch is sealed. A batch that was
cancelled or has expired first gets an error row for each line that was not run.
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import Interval, bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from xalen_batch import db, ids, jsonl, log, storage
from xalen_batch.billing import invoices
from xalen_batch.config import settings
from xalen_batch.metrics import counted
from xalen_batch.models import Batch, File, Task, ledgers, results
from xalen_batch.models import tasks as task_rows
from xalen_batch.models.base import table_of
from xalen_batch.models.files import FilePart
from xalen_batch.models.tasks import TOKEN_COUNTERS
from xalen_batch.pipeline import announce, record
from xalen_batch.states import BatchStatus, LineError, TaskState
from xalen_batch.storage import marks

logger = log.get(__name__)

MESSAGES = {
    LineError.BATCH_CANCELLED: (
        "The batch was cancelled before this request was run. It was not billed."
    ),
    LineError.BATCH_EXPIRED: (
        "The batch's completion window passed before this request was run. It was not billed;"
        " submit it again."
    ),
}
FILE_LOST = "Its input file was lost, and its custom_id with it."
LOST_NAME = "line {} of the lost input file"


def run(batch_id: UUID) -> None:
    """Finalize a batch, unless lines may still run or another process ends its open tasks."""
    with db.transaction() as session:
        batch, has_open_tasks = _lock(session, batch_id)
        if batch is None:
            return
        is_over = batch.ledger is not None and ledgers.close(session, batch)
        if is_over or not has_open_tasks:
            _complete(session, batch)
            return
        if batch.ledger is not None:
            return
        fence = _lease(session, batch) if _is_ready(session, batch) else None
        if fence is None:
            return
    _end_open_tasks(batch)
    with db.transaction() as session:
        batch, has_open_tasks = _lock(session, batch_id)
        if batch is None:
            return
        if has_open_tasks:
            # A task is open again. The sweep repeats the finalizing.
            _unlease(session, batch, fence)
            return
        _complete(session, batch)


# A batch without open tasks never has one again, so it may have none in the snapshot from before
# the wait for the lock.
_LOCK = (
    select(
        Batch,
        select(Task.seq)
        .where(Task.batch_id == Batch.id, task_rows.has_state(TaskState.PENDING, TaskState.RUNNING))
        .exists(),
    )
    .where(
        Batch.id == bindparam("batch_id"),
        Batch.status.in_([BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING]),
    )
    .with_for_update(of=Batch)
    .execution_options(populate_existing=True)
)


def _lock(session: Session, batch_id: UUID) -> tuple[Batch | None, bool]:
    """The batch, locked, and whether it has open tasks. None: it has ended or has not begun."""
    row = session.execute(_LOCK, {"batch_id": batch_id}).one_or_none()
    return (None, False) if row is None else (row[0], row[1])


def _lease(session: Session, batch: Batch) -> int | None:
    """Lease the batch, and return its fence, one higher. None: another process has it."""
    return session.scalar(
        update(Batch)
        .where(
            Batch.id == batch.id,
            (Batch.lease_until.is_(None)) | (Batch.lease_until < func.now()),
        )
        .values(fence=Batch.fence + 1, lease_until=func.now() + timedelta(seconds=settings().lease))
        .returning(Batch.fence)
        .execution_options(synchronize_session=False)
    )


def _unlease(session: Session, batch: Batch, fence: int) -> None:
    session.execute(
        update(Batch)
        .where(Batch.id == batch.id, Batch.fence == fence)
        .values(lease_until=None)
        .execution_options(synchronize_session=False)
    )


def _is_ready(session: Session, batch: Batch) -> bool:
    """Whether no line will run any more. An expired batch moves to `finalizing` here."""
    if batch.status == BatchStatus.IN_PROGRESS:
        is_overdue = session.scalar(
            select(Batch.expires_at <= func.now()).where(Batch.id == batch.id)
        )
        if not is_overdue or not batch.move(session, BatchStatus.FINALIZING):
            return False
    # The answers of requests in flight are kept and billed, so their tasks end first.
    return not task_rows.has_any(session, batch.id, TaskState.RUNNING)


def _end_open_tasks(batch: Batch) -> None:
    """End each pending task in its own transaction, with an error row for each line not run."""
    code = (
        LineError.BATCH_CANCELLED
        if batch.status == BatchStatus.CANCELLING
        else LineError.BATCH_EXPIRED
    )
    while True:
        with db.transaction() as session:
            task = session.scalars(
                select(Task)
                .where(Task.batch_id == batch.id, task_rows.has_state(TaskState.PENDING))
                .limit(1)
            ).one_or_none()
            if task is None:
                return
            rows = unrun(session, batch, task, code, MESSAGES[code])
            if task_rows.end(session, task, record.counts(rows)):
                record.insert(session, rows)


def unrun(
    session: Session, batch: Batch, task: Task, code: LineError, message: str
) -> list[record.Row]:
    """An error row for each line of a task that has no result yet.

    If the input file is lost, so are the custom ids: LOST_NAME stands for them.
    """
    spans = list(jsonl.unpack(task.line_index))
    recorded = results.recorded(session, batch.id, [span.line_no for span in spans])
    left = [span for span in spans if span.line_no not in recorded]
    try:
        raw = storage.ranges(
            storage.key(batch.input_file_id), [s.offset for s in left], [s.length for s in left]
        )
        names = [jsonl.input_line(line).custom_id for line in raw]
    except FileNotFoundError:
        marks.confirm_gone(storage.key(batch.input_file_id))
        # The batch still ends.
        logger.error("file.lost", batch_id=batch.id, file_id=batch.input_file_id)
        names = [LOST_NAME.format(span.line_no) for span in left]
        message = f"{message} {FILE_LOST}"
    return [
        record.unanswered(record.LineRef(batch.id, span.line_no, task.model, name), code, message)
        for span, name in zip(left, names, strict=True)
    ]


# Counters of tasks that are summed for the batch; `failed` is not among them (`_complete`).
COUNTERS = ("completed", *TOKEN_COUNTERS, "output_bytes", "error_bytes")


# Built once, since every batch runs it.
_TOTALS = select(
    *(func.coalesce(func.sum(getattr(Task, name)), 0).label(name) for name in COUNTERS)
).where(Task.batch_id == bindparam("batch_id"))


def _totals(session: Session, batch: Batch) -> dict[str, int]:
    """A batch's counters, summed over its tasks."""
    row = session.execute(_TOTALS, {"batch_id": batch.id}).one()
    return {name: int(value) for name, value in row._mapping.items()}


def _complete(session: Session, batch: Batch) -> None:
    """Fix the counts of a locked batch, issue its invoice and end it."""
    totals = _totals(session, batch)
    files = _output_files(session, batch, totals.pop("output_bytes"), totals.pop("error_bytes"))
    invoice = invoices.issue(session, batch)
    cancelled, expired = (
        invoices.not_billed(invoice, reason)
        for reason in (LineError.BATCH_CANCELLED, LineError.BATCH_EXPIRED)
    )
    # Not the sum over the tasks: during a rolling upgrade, workers of the previous version count
    # lines that were not run as failed.
    failed = batch.total - totals["completed"] - cancelled - expired
    counted = invoices.counted_tokens(invoice)
    end = _end_status(batch, has_expired=bool(expired))
    is_in_progress = batch.status == BatchStatus.IN_PROGRESS
    path = (BatchStatus.FINALIZING, end) if is_in_progress else (end,)
    batch.move(
        session,
        *path,
        output_file_id=files.get(FilePart.OUTPUT),
        error_file_id=files.get(FilePart.ERROR),
        failed=failed,
        cancelled=cancelled,
        expired=expired,
        counted_input_tokens=counted["input"],
        counted_output_tokens=counted["output"],
        **totals,
    )
    announce.ended(session, batch, invoice)
    _count(session, batch)
    logger.info(
        "batch.finalized",
        batch_id=batch.id,
        status=end.value,
        completed=totals["completed"],
        failed=failed,
        cancelled=cancelled,
        expired=expired,
        total=str(invoice.total),
    )


def _count(session: Session, batch: Batch) -> None:
    # A ledger of live calls has no deadline that anybody waits for.
    if batch.ledger is not None:
        return
    now, mode = db.now(session), counted.mode(batch.livemode)
    counted.BATCHES_ENDED.labels(batch.status, mode).inc()
    counted.BATCH_SECONDS.labels(mode).observe((now - batch.created_at).total_seconds())
    if batch.in_progress_at is not None:
        started = (batch.in_progress_at - batch.created_at).total_seconds()
        counted.START_SECONDS.labels(mode).observe(started)
    counted.DEADLINE_MARGIN.labels(mode).observe((batch.expires_at - now).total_seconds())


def _end_status(batch: Batch, *, has_expired: bool) -> BatchStatus:
    if batch.status == BatchStatus.CANCELLING:
        return BatchStatus.CANCELLED
    return BatchStatus.EXPIRED if has_expired else BatchStatus.COMPLETED


_INSERT_FILE = insert(table_of(File)).values(
    expires_at=func.now() + bindparam("life", type_=Interval)
)


def _output_files(
    session: Session, batch: Batch, output_bytes: int, error_bytes: int
) -> dict[FilePart, UUID]:
    """Create the output and the error file; a file that would have no line is left out."""
    found = {}
    life = timedelta(seconds=batch.output_expires_after or settings().file_retention)
    for part, size in ((FilePart.OUTPUT, output_bytes), (FilePart.ERROR, error_bytes)):
        if size == 0:
            continue
        found[part] = ids.new()
        row = {
            "id": found[part],
            "account_id": batch.account_id,
            "livemode": batch.livemode,
            "purpose": "batch_output",
            "filename": f"{ids.render('batch', batch.id)}_{part.value}.jsonl",
            "bytes": size,
            "batch_id": batch.id,
            "part": part.value,
            "life": life,
        }
        session.execute(_INSERT_FILE, row)
    return found

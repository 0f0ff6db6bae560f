"""Finalize: fix the counts of a batch, issue its invoice and move it to its terminal status.

A batch is finalized when none of its lines will run any more. That is cheap if every line has a
result, since output files are views over results until the batch is sealed. A batch that was
cancelled or has expired first gets an error row for each line that was not run.
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from xalen_batch import db, ids, jsonl, log, storage
from xalen_batch.billing import invoices
from xalen_batch.config import settings
from xalen_batch.models import Batch, File, Task, results
from xalen_batch.models import tasks as task_rows
from xalen_batch.models.files import FilePart
from xalen_batch.models.tasks import TOKEN_COUNTERS
from xalen_batch.pipeline import record
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
    """Finalize a batch, unless lines may still run or another process finalizes it."""
    with db.transaction() as session:
        batch = _lease(session, batch_id)
        if batch is None:
            return
        if not _is_ready(session, batch):
            _unlease(session, batch)
            return
    if batch.status != BatchStatus.IN_PROGRESS:
        _end_open_tasks(batch)
    with db.transaction() as session:
        _complete(session, batch)


def _lease(session: Session, batch_id: UUID) -> Batch | None:
    """Lease the batch and raise its fence. None: another process has it, or it has ended."""
    return session.scalars(
        update(Batch)
        .where(
            Batch.id == batch_id,
            Batch.status.in_(
                [BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING]
            ),
            (Batch.lease_until.is_(None)) | (Batch.lease_until < func.now()),
        )
        .values(fence=Batch.fence + 1, lease_until=func.now() + timedelta(seconds=settings().lease))
        .returning(Batch)
    ).one_or_none()


def _unlease(session: Session, batch: Batch) -> None:
    session.execute(
        update(Batch)
        .where(Batch.id == batch.id, Batch.fence == batch.fence)
        .values(lease_until=None)
    )


def _is_ready(session: Session, batch: Batch) -> bool:
    """Whether no line will run any more. An expired batch moves to `finalizing` here."""
    if batch.status == BatchStatus.IN_PROGRESS:
        if not task_rows.has_any(session, batch.id, TaskState.PENDING, TaskState.RUNNING):
            return True
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


def _totals(session: Session, batch: Batch) -> dict[str, int]:
    """A batch's counters, summed over its tasks."""
    sums = (func.coalesce(func.sum(getattr(Task, name)), 0).label(name) for name in COUNTERS)
    row = session.execute(select(*sums).where(Task.batch_id == batch.id)).one()
    return {name: int(value) for name, value in row._mapping.items()}


def _complete(session: Session, batch: Batch) -> None:
    """Fix the counts, issue the invoice and end the batch; do nothing if a task is open again."""
    batch = session.get_one(Batch, batch.id, with_for_update=True)
    if batch.status not in (
        BatchStatus.IN_PROGRESS,
        BatchStatus.FINALIZING,
        BatchStatus.CANCELLING,
    ):
        return
    if task_rows.has_any(session, batch.id, TaskState.PENDING, TaskState.RUNNING):
        _unlease(session, batch)
        return
    if batch.status == BatchStatus.IN_PROGRESS and not batch.move(session, BatchStatus.FINALIZING):
        return
    totals = _totals(session, batch)
    batch.output_file_id = _output_file(session, batch, FilePart.OUTPUT, totals.pop("output_bytes"))
    batch.error_file_id = _output_file(session, batch, FilePart.ERROR, totals.pop("error_bytes"))
    for name, value in totals.items():
        setattr(batch, name, value)
    invoice = invoices.issue(session, batch)
    batch.cancelled, batch.expired = (
        invoices.not_billed(invoice, reason)
        for reason in (LineError.BATCH_CANCELLED, LineError.BATCH_EXPIRED)
    )
    # Not the sum over the tasks: during a rolling upgrade, workers of the previous version count
    # lines that were not run as failed.
    batch.failed = batch.total - batch.completed - batch.cancelled - batch.expired
    counted = invoices.counted_tokens(invoice)
    batch.counted_input_tokens, batch.counted_output_tokens = counted["input"], counted["output"]
    end = _end_status(batch)
    batch.move(session, end)
    counts = {
        name: getattr(batch, name) for name in ("completed", "failed", "cancelled", "expired")
    }
    logger.info(
        "batch.finalized", batch_id=batch.id, status=end.value, **counts, total=str(invoice.total)
    )


def _end_status(batch: Batch) -> BatchStatus:
    if batch.status == BatchStatus.CANCELLING:
        return BatchStatus.CANCELLED
    return BatchStatus.EXPIRED if batch.expired else BatchStatus.COMPLETED


def _output_file(session: Session, batch: Batch, part: FilePart, size: int) -> UUID | None:
    """Create the output or error file, of `size` bytes. None if it would have no line."""
    if size == 0:
        return None
    file = File(
        id=ids.new(),
        account_id=batch.account_id,
        livemode=batch.livemode,
        purpose="batch_output",
        filename=f"{ids.render('batch', batch.id)}_{part.value}.jsonl",
        size=size,
        batch_id=batch.id,
        part=part.value,
        expires_at=func.now()
        + timedelta(seconds=batch.output_expires_after or settings().file_retention),
    )
    session.add(file)
    session.flush()
    return file.id

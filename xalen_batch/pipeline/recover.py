"""Recover: resume work that a crash, a lost message or a deadline has left behind.

Every function is idempotent, and any number of processes may run it at once.
"""

from datetime import timedelta
from functools import cache
from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, insert, literal_column, select, true, update
from sqlalchemy.orm import Session

from xalen_batch import db, jsonl, log
from xalen_batch.broker import Job, Message
from xalen_batch.metrics import counted
from xalen_batch.models import Batch, Task, line_attempts, results
from xalen_batch.models import tasks as task_rows
from xalen_batch.models.batches import has_status, roll_window, window_is_open
from xalen_batch.models.tasks import SUSPECT_CRASHES, has_state
from xalen_batch.pipeline import fairness, finalize, poison, record, seal, sweeps
from xalen_batch.pipeline.poison import AfterCrash
from xalen_batch.pipeline.sweeps import isolated
from xalen_batch.schedules import due as due_schedules
from xalen_batch.states import MAY_START, BatchStatus, LineError, TaskState
from xalen_batch.windows import ExecutionWindow

logger = log.get(__name__)

# Age from which a batch that nobody validates is enqueued again. The message of a newer batch is
# still on its way.
LOST_AFTER = timedelta(seconds=2)
WORKER_LOST = (
    f"{poison.ALONE_CRASHES} workers in a row were lost while this request was the only one that"
    " they ran. It was not billed. Submitting it as it is will most likely fail again."
)
# Batches that one call of `due` enqueues for validation.
VALIDATED_AT_ONCE = 50
# Execution windows that one call of `due` moves to their next interval. The others stay closed
# until a later call.
ROLLED_AT_ONCE = 1_000
# Batches in progress that a poll checks for having ended. The worker that ends the last task of a
# batch enqueues the finalizing; a poll among more batches may miss a lost message, and the next
# tick, which checks all batches, finds it.
ENDED_AMONG = 200
# A limit that PostgreSQL knows when it makes the generic plan, as the statuses in `has_status`.
ONE: ColumnElement[int] = literal_column("1")


def due(*, ended_among: int | None = ENDED_AMONG) -> list[Message]:
    """Reclaim tasks whose lease ran out, and return messages for the jobs that no process runs.

    Every worker polls it, so it is cheap. `ended_among`: the number of batches in progress that are
    checked for having no open task; None: all.
    """
    with db.transaction() as session:
        # Ordered, so that two processes lock the batches in the same order.
        for task in sorted(task_rows.reclaim(session), key=lambda task: task.key):
            # A poison line whose input file cannot be read is not failed now: its task stays
            # claimable.
            with isolated("reclaim", batch_id=task.batch_id), session.begin_nested():
                _take_back(session, task)
        _roll_windows(session)
        return [
            *_batches_due(session, ended_among),
            *_tasks_due(session),
            *_schedules_due(session),
            *_seals_due(session),
        ]


def tick() -> None:
    """Publish messages for all due jobs, then run the sweeps. Beat sends this job periodically."""
    # Without the database this raises one error, instead of one error for each sweep.
    db.ping()
    with isolated("hints"):
        messages = due(ended_among=None)
        with db.transaction() as session:
            for message in messages:
                db.enqueue(session, message.job, message.id)
    with isolated("fairness"), db.transaction() as session:
        fairness.forget_waiting_time(session)
    for sweep in sweeps.ALL:
        sweep.run()


def _take_back(session: Session, task: Task) -> None:
    counted.LEASES_RECLAIMED.inc()
    logger.warning(
        "task.worker_lost",
        batch_id=task.batch_id,
        task=task.seq,
        worker=task.worker,
        losses=task.losses,
    )
    line_nos = [span.line_no for span in jsonl.unpack(task.line_index)]
    line_attempts.add_lost(session, task.batch_id, (task.seq, task.fence), line_nos)
    found = poison.after_crash(task.losses, task.lines)
    if found is AfterCrash.RETRY:
        return
    batch = session.get_one(Batch, task.batch_id, with_for_update=True)
    if found is AfterCrash.FAIL:
        rows = finalize.unrun(session, batch, task, LineError.WORKER_LOST, WORKER_LOST)
        if task_rows.end(session, task, record.counts(rows)):
            record.insert(session, rows)
    else:
        _split(session, task)


def _split(session: Session, task: Task) -> None:
    """Move a suspect's lines without a result into smaller suspect tasks, and end the task."""
    spans = list(jsonl.unpack(task.line_index))
    recorded = results.recorded(session, task.batch_id, [span.line_no for span in spans])
    kept = [span for span in spans if span.line_no in recorded]
    left = [span for span in spans if span.line_no not in recorded]
    session.execute(
        update(Task)
        .where(Task.batch_id == task.batch_id, Task.seq == task.seq)
        .values(lines=len(kept), line_index=jsonl.pack(kept))
        .execution_options(synchronize_session=False)
    )
    # The first position behind all tasks of the batch. A task owns at least one position, also if
    # it has no line left.
    position = (
        session.scalar(
            select(func.max(Task.seq + func.greatest(Task.lines, 1))).where(
                Task.batch_id == task.batch_id
            )
        )
        or 0
    )
    smaller = []
    for part in poison.parts(left):
        smaller.append(
            {
                "batch_id": task.batch_id,
                "seq": position,
                "model": task.model,
                "lines": len(part),
                "line_index": jsonl.pack(part),
                "losses": SUSPECT_CRASHES,
            }
        )
        position += len(part)
    # No line is left if the worker crashed between recording the last line and ending the task.
    if smaller:
        session.execute(insert(Task), smaller)
    task_rows.end(session, task, {})


def _roll_windows(session: Session) -> None:
    """Replace each execution interval that is over by the one that is open now or opens next.

    Intervals in between are skipped, however long no process has run.
    """
    over = select(Batch.id, Batch.execution_window, Batch.window_closes_at, func.now()).where(
        has_status(*sorted(MAY_START)), Batch.window_closes_at <= func.now()
    )
    for batch_id, window, closed_at, now in session.execute(over.limit(ROLLED_AT_ONCE)).all():
        try:
            opens_at, closes_at = ExecutionWindow.model_validate(window).interval(now)
        except Exception as error:
            # The batch starts no line and expires; other batches go on.
            logger.error("window.unreadable", batch_id=batch_id, **log.cause(error))
            continue
        if roll_window(
            session, batch_id, closed_at=closed_at, opens_at=opens_at, closes_at=closes_at
        ):
            logger.info("window.closed", batch_id=batch_id, opens_at=opens_at.isoformat())


def _batches_due(session: Session, ended_among: int | None) -> list[Message]:
    closing, overdue, ended, validating = _waiting_batches(ended_among)
    ending = dict.fromkeys(
        id for found in (closing, overdue, ended) for id in session.scalars(found)
    )
    return [
        *(Message(Job.VALIDATE, id.hex) for id in session.scalars(validating)),
        *(Message(Job.FINALIZE, id.hex) for id in ending),
    ]


@cache
def _waiting_batches(ended_among: int | None) -> tuple[Select[UUID], ...]:
    """Batches to finalize, for three reasons, and to validate; cached, since every poll runs it."""
    is_free = (Batch.lease_until.is_(None)) | (Batch.lease_until < func.now())
    lost = Batch.created_at < func.now() - LOST_AFTER
    # Each call enqueues only the oldest batches; later calls take the rest.
    validating = (
        select(Batch.id)
        .where(has_status(BatchStatus.VALIDATING), is_free, lost)
        .order_by(Batch.id)
        .limit(VALIDATED_AT_ONCE)
    )
    closing = select(Batch.id).where(
        has_status(BatchStatus.FINALIZING, BatchStatus.CANCELLING), is_free
    )
    running = select(Batch.id).where(has_status(BatchStatus.IN_PROGRESS), is_free)
    overdue = running.where(Batch.expires_at <= func.now())
    some = running.order_by(Batch.expires_at).limit(ended_among).subquery()
    is_open = (
        select(Task.seq)
        .where(Task.batch_id == some.c.id, has_state(TaskState.PENDING, TaskState.RUNNING))
        .exists()
    )
    return closing, overdue, select(some.c.id).where(~is_open), validating


def _tasks_due(session: Session) -> list[Message]:
    return [Message(Job.EXECUTE)] if session.scalar(_claimable()) is not None else []


@cache
def _claimable() -> Select[tuple[int]]:
    """A query for any one claimable task; cached, since every poll runs it."""
    running = (
        select(Batch.id).where(has_status(BatchStatus.IN_PROGRESS), window_is_open()).subquery()
    )
    # LATERAL makes the planner look batch by batch and stop at the first task, instead of reading
    # the tasks of all batches.
    tasks = (
        select(Task.seq)
        .where(
            Task.batch_id == running.c.id,
            has_state(TaskState.PENDING),
            (Task.not_before.is_(None)) | (Task.not_before <= func.now()),
        )
        .limit(ONE)
        .lateral()
    )
    return select(tasks.c.seq).select_from(running.join(tasks, true())).limit(ONE)


def _seals_due(session: Session) -> list[Message]:
    return [Message(Job.SEAL)] if seal.is_due(session) else []


def _schedules_due(session: Session) -> list[Message]:
    return [Message(Job.FIRE)] if due_schedules.is_any(session) else []

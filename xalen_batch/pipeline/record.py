"""Record: write outcomes as results, charges and counters in one transaction, under the fence.

Recording is idempotent. The guarded UPDATE of the task comes first: a worker that lost its lease
matches no row and writes nothing, so the COPY after it needs no conflict handling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.orm import Session

from xalen_batch import broker, db, jsonl, log, money
from xalen_batch.backends.contract import Answered, Ended, Exhausted, Refused, Retryable
from xalen_batch.billing.charges import USAGE_COUNTED, ZERO, Tariff
from xalen_batch.broker import Job, Message
from xalen_batch.config import settings
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Result, line_attempts
from xalen_batch.models import tasks as task_rows
from xalen_batch.models.line_attempts import Attempt
from xalen_batch.states import UNRUN, BatchStatus, LineError, TaskState

logger = log.get(__name__)

NO_USAGE = Usage()


class LineRef(Struct, frozen=True, gc=False):
    """The line that a row of `results` belongs to."""

    batch_id: UUID
    line_no: int
    model: str
    custom_id: str


class Row(Struct, frozen=True, gc=False):
    """One row of `results`, immutable: any thread may read it."""

    line: LineRef
    status_code: int | None = None
    body: bytes | None = None
    error_code: str | None = None
    error_message: str | None = None
    usage: Usage = NO_USAGE
    amount: Decimal | None = None
    flag: str | None = None

    @property
    def is_escaped(self) -> bool | None:
        """True if the custom id or the error holds a character that output lines escape, else None.

        None and not False: a null takes no space in the row.
        """
        return jsonl.has_line_break(self.line.custom_id, self.error_message) or None

    @property
    def size(self) -> int:
        """Bytes that this row adds to the output or error file."""
        line = self.line
        return jsonl.result_size(
            line.line_no,
            line.custom_id,
            self.status_code,
            self.body,
            self.error_code,
            self.error_message,
            self.is_escaped,
        )


def row(line: LineRef, outcome: Ended, tariff: Tariff) -> Row:
    """The row of an outcome: charged if the line succeeded, without an amount otherwise."""
    match outcome:
        case Answered(status, body, usage):
            charge = tariff.charge(usage)
            return Row(
                line,
                status,
                jsonl.escaped(body),
                usage=usage,
                amount=charge.amount,
                flag=charge.flag,
            )
        case Refused(status, body):
            return Row(line, status, jsonl.escaped(body))
        case Exhausted(last, attempts):
            return _exhausted(line, last, attempts)


def _exhausted(line: LineRef, last: Retryable, attempts: int) -> Row:
    message = (
        f"The model backend failed {attempts} times, the last time with: {last.reason.rstrip('.')}."
        " The line was not billed; submit it again."
    )
    if last.is_timeout:
        return unanswered(line, LineError.REQUEST_TIMEOUT, message)
    if last.status is None:
        return unanswered(line, LineError.BACKEND_UNAVAILABLE, message)
    if last.status < 400:
        return unanswered(line, LineError.BAD_ANSWER, message)
    body = {
        "error": {
            "message": message,
            "type": "server_error",
            "param": None,
            "code": LineError.BACKEND_UNAVAILABLE.value,
        }
    }
    return Row(line, last.status, jsonl.escaped(orjson.dumps(body)))


def unanswered(line: LineRef, code: LineError, message: str) -> Row:
    """The row of a line that ended without an answer: a code and a message instead of a body."""
    return Row(line, error_code=code.value, error_message=message)


@money.exact
def counts(rows: Sequence[Row]) -> dict[str, Any]:
    """The increments of the task's counters and sums for these rows.

    Lines that were never run (UNRUN) count neither as completed nor as failed.
    """
    completed = failed = output_bytes = error_bytes = read = cached = written = reasoning = 0
    counted_read = counted_written = 0
    charges: list[Decimal] = []
    not_billed: dict[str, int] = {}
    for row in rows:
        if row.amount is None:
            error_bytes += row.size
            failed += row.error_code not in UNRUN
            reason = row.error_code or f"http_{row.status_code}"
            not_billed[reason] = not_billed.get(reason, 0) + 1
            continue
        usage = row.usage
        completed += 1
        output_bytes += row.size
        read += usage.input_tokens
        cached += usage.cached_tokens
        written += usage.output_tokens
        reasoning += usage.reasoning_tokens
        charges.append(row.amount)
        if row.flag is not None and USAGE_COUNTED in row.flag:
            counted_read += usage.input_tokens
            counted_written += usage.output_tokens
    return {
        "completed": completed,
        "failed": failed,
        "output_bytes": output_bytes,
        "error_bytes": error_bytes,
        "input_tokens": read,
        "cached_tokens": cached,
        "output_tokens": written,
        "reasoning_tokens": reasoning,
        "summed": len(rows),
        "charged": sum(charges, ZERO),
        "counted_input_tokens": counted_read,
        "counted_output_tokens": counted_written,
        "not_billed": not_billed or None,
    }


@dataclass(frozen=True, slots=True)
class Recorded:
    """`is_stale`: the lease was lost and nothing was written.

    `goes_on`: further lines of the batch may be started.
    """

    is_stale: bool
    goes_on: bool


def record(
    key: tuple[UUID, int],
    fence: int,
    rows: Sequence[Row],
    *,
    to: TaskState = TaskState.RUNNING,
    pause: float | None = None,
    crashes: int = 0,
    attempts: Sequence[tuple[int, Attempt]] = (),
) -> Recorded:
    """Check the fence, update the counters and the lease, and insert the rows. One transaction.

    `to`: RUNNING extends the lease, DONE ends the task, PENDING hands it back; it is claimable
    again after `pause` seconds. `crashes`: 1 counts the crash of this worker in advance, before it
    runs a suspect; -1 takes it back when the worker survives. `attempts`: failed ones, by the
    number of their line; the line may be one of the rows, or have no outcome yet.
    """
    with db.transaction() as session:
        increments = counts(rows)
        if crashes:
            increments["losses"] = crashes
        batch = task_rows.advance(
            session, key, fence, to=to, lease=settings().lease, pause=pause, counts=increments
        )
        if batch is None:
            return Recorded(is_stale=True, goes_on=False)
        insert(session, rows)
        if attempts:
            line_attempts.add(session, key[0], attempts)
    if to is not TaskState.RUNNING:
        is_last = to is TaskState.DONE and not batch.has_open_tasks
        _enqueue_finalize(key[0], batch.status, is_last=is_last)
    return Recorded(
        is_stale=False, goes_on=batch.status == BatchStatus.IN_PROGRESS and batch.is_open
    )


def insert(session: Session, rows: Sequence[Row]) -> None:
    """COPY rows into `results`. The caller has checked the fence in the same transaction."""
    if not rows:
        return
    with db.driver(session).cursor() as cursor, cursor.copy(_COPY) as copy:
        copy.set_types(_TYPES)
        for row in rows:
            usage = row.usage if row.amount is not None else NO_USAGE
            copy.write_row(
                (
                    row.line.batch_id,
                    row.line.line_no,
                    usage.input_tokens,
                    usage.cached_tokens,
                    usage.output_tokens,
                    usage.reasoning_tokens,
                    row.status_code,
                    row.amount,
                    row.line.model,
                    row.line.custom_id,
                    row.flag,
                    row.error_code,
                    row.error_message,
                    row.is_escaped,
                    row.body,
                )
            )


_COPY = (
    "COPY results (batch_id, line_no, input_tokens, cached_tokens, output_tokens, reasoning_tokens,"
    " status_code, amount, model, custom_id, flag, error_code, error_message, is_escaped, body)"
    " FROM STDIN (FORMAT BINARY)"
)
_TYPES = [
    "uuid",
    "int8",
    "int8",
    "int8",
    "int8",
    "int8",
    "int2",
    "numeric",
    "text",
    "text",
    "text",
    "text",
    "text",
    "bool",
    "bytea",
]


def is_recorded(row: Row) -> bool:
    """Whether the transaction that wrote this row was committed; for a commit without an answer."""
    with db.transaction() as session:
        return (
            session.scalar(
                select(Result.line_no).where(
                    Result.batch_id == row.line.batch_id, Result.line_no == row.line.line_no
                )
            )
            is not None
        )


def _enqueue_finalize(batch_id: UUID, status: str, *, is_last: bool) -> None:
    """Enqueue the finalizing of a batch that waits for no task any more.

    `is_last`: its other tasks had ended before this one.
    """
    if not is_last:
        waits_for = [TaskState.RUNNING]
        if status == BatchStatus.IN_PROGRESS:
            waits_for = [TaskState.PENDING, TaskState.RUNNING]
        # A statement after the commit: when the last two tasks end at the same time, the check that
        # comes later sees the end of both.
        with db.autocommit() as session:
            if task_rows.has_any(session, batch_id, *waits_for):
                return
    broker.publish([Message(Job.FINALIZE, batch_id.hex)])

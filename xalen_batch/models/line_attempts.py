"""Failed attempts at lines: where, when and why. Most lines have none, and then no row.

They tell what happened to a line (`results/explain.py`) and decide nothing. They hold no text of a
prompt or an answer, and are deleted with the first of their batch's output files (`erasure.py`).
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import ARRAY, BigInteger, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, Session, mapped_column

from xalen_batch.models.base import Base
from xalen_batch.states import AttemptError

# The last attempts at a line that are kept.
MOST_OF_LINE = 10
# Lines of a batch with rows of their own, and lost leases of a batch. Rows of attempts are a
# kilobyte at most, so those of a batch are 10 MB at most.
MOST_LINES = 10_000
MOST_LOST = 100


class LineAttempts(Base):
    """The failed attempts at one line, without those that ended with the loss of a worker.

    No foreign key, as in `results`. Only the holder of the task's lease writes the row, in the
    transaction that checks the fence.
    """

    __tablename__ = "line_attempts"

    batch_id: Mapped[UUID] = mapped_column(primary_key=True)
    line_no: Mapped[int] = mapped_column(primary_key=True)
    # All failed attempts, also those that are not kept.
    failed: Mapped[int]
    # The last MOST_OF_LINE, as objects with the fields of `Attempt`.
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)


class LostLease(Base):
    """A task whose lease ran out, as its worker was lost."""

    __tablename__ = "lost_leases"

    batch_id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    # The task's fence when it was taken back.
    fence: Mapped[int] = mapped_column(primary_key=True)
    lost_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # Its lines without a result. Whether the worker had sent them is not known.
    line_nos: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))


class Attempt(Struct, frozen=True, gc=False):
    """One failed attempt. `at`: when its request was sent, in seconds since 1970.

    `seconds`: until it failed; None if the worker was lost. `server`: the number of the model's
    server, from 1, in the order of the catalog.
    """

    at: float
    seconds: float | None
    error: str
    status: int | None = None
    server: int | None = None


_encode = msgspec.json.Encoder().encode

# A line that has a row gets its further attempts also when the batch has MOST_LINES rows. A
# transaction whose commit is in doubt may be repeated: what a row has already is not added again.
_ADD = text(f"""
    INSERT INTO line_attempts AS old (batch_id, line_no, failed, attempts)
    SELECT :batch_id, line_no, failed, CAST(attempts AS jsonb)
    FROM unnest(CAST(:line_nos AS bigint[]), CAST(:failed AS int[]), CAST(:attempts AS text[]))
        AS new (line_no, failed, attempts)
    WHERE {MOST_LINES} > (
        SELECT count(*) FROM (
            SELECT FROM line_attempts WHERE batch_id = :batch_id LIMIT {MOST_LINES}
        ) AS rows
    ) OR EXISTS (
        SELECT FROM line_attempts AS own
        WHERE own.batch_id = :batch_id AND own.line_no = new.line_no
    )
    ON CONFLICT (batch_id, line_no) DO UPDATE SET
        failed = old.failed + excluded.failed,
        attempts = jsonb_path_query_array(
            old.attempts || excluded.attempts, '$[last - {MOST_OF_LINE - 1} to last]'
        )
    WHERE NOT old.attempts @> excluded.attempts
""")


def add(session: Session, batch_id: UUID, attempts: Iterable[tuple[int, Attempt]]) -> None:
    """Add failed attempts, by the number of their line and in the order of their time."""
    of_line: dict[int, list[Attempt]] = {}
    for line_no, attempt in attempts:
        of_line.setdefault(line_no, []).append(attempt)
    session.execute(
        _ADD,
        {
            "batch_id": batch_id,
            "line_nos": list(of_line),
            "failed": [len(own) for own in of_line.values()],
            "attempts": [_encode(own[-MOST_OF_LINE:]).decode() for own in of_line.values()],
        },
    )


_ADD_LOST = text(f"""
    INSERT INTO lost_leases (batch_id, seq, fence, line_nos)
    SELECT :batch_id, :seq, :fence, array_agg(line_no)
    FROM unnest(CAST(:line_nos AS bigint[])) AS line_no
    WHERE NOT EXISTS (
        SELECT FROM results WHERE results.batch_id = :batch_id AND results.line_no = line_no.line_no
    )
    HAVING count(*) > 0 AND {MOST_LOST} > (
        SELECT count(*) FROM lost_leases WHERE batch_id = :batch_id
    )
""")


def add_lost(
    session: Session, batch_id: UUID, task: tuple[int, int], line_nos: Sequence[int]
) -> None:
    """Note that the worker of a task was lost. `task`: its `seq` and its new fence."""
    values = {"batch_id": batch_id, "seq": task[0], "fence": task[1], "line_nos": list(line_nos)}
    session.execute(_ADD_LOST, values)


_LOST = text(f"""
    SELECT extract(epoch FROM lost_at)::float8 FROM lost_leases
    WHERE batch_id = :batch_id AND :line_no = ANY (line_nos)
    ORDER BY lost_at DESC LIMIT {MOST_OF_LINE}
""")


def of_line(session: Session, batch_id: UUID, line_no: int) -> tuple[int, list[Attempt]]:
    """The number of failed attempts at a line, and the last MOST_OF_LINE, the oldest first."""
    row = session.get(LineAttempts, (batch_id, line_no))
    failed = 0 if row is None else row.failed
    found = [] if row is None else msgspec.convert(row.attempts, list[Attempt])
    lost = session.scalars(_LOST, {"batch_id": batch_id, "line_no": line_no}).all()
    found += [Attempt(at, None, AttemptError.WORKER_LOST.value) for at in lost]
    found.sort(key=lambda attempt: attempt.at)
    return failed + len(lost), found[-MOST_OF_LINE:]


_ERASE = text("""
    DELETE FROM line_attempts WHERE batch_id = :batch_id AND line_no IN (
        SELECT line_no FROM line_attempts WHERE batch_id = :batch_id LIMIT :most
    )
    RETURNING line_no
""")
_ERASE_LOST = text("DELETE FROM lost_leases WHERE batch_id = :batch_id")


def erase(session: Session, batch_id: UUID, most: int) -> bool:
    """Delete at most `most` lines' attempts, and the lost leases. Whether there may be more."""
    values = {"batch_id": batch_id}
    session.execute(_ERASE_LOST, values)
    return len(session.execute(_ERASE, values | {"most": most}).all()) == most

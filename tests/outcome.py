"""Invariants of every batch that has ended, whichever faults happened before."""

import json
from collections import Counter
from decimal import localcontext
from uuid import UUID

from sqlalchemy import func, or_, select

from xalen_batch import db, money
from xalen_batch.billing import invoices, reconcile, sums
from xalen_batch.models import Batch, Invoice, Result, Task
from xalen_batch.models.files import FilePart
from xalen_batch.results import results
from xalen_batch.states import BatchStatus, LineError, TaskState


def assert_whole(batch_id: UUID, lines: int | None = None, *, is_proven: bool = False) -> Batch:
    """Assert that the batch and each of its lines have ended once, that counts, files, charges and
    invoice agree, and that no worker holds a task of it.

    `lines`: the number of its lines; None: its `total`. `is_proven`: the caller has called
    `assert_reconciled` for all batches.
    """
    with db.transaction() as session:
        batch = session.get_one(Batch, batch_id)
        rows = session.execute(
            select(Result.line_no, Result.custom_id, Result.amount, Result.error_code).where(
                Result.batch_id == batch_id
            )
        ).all()
        invoiced = session.scalar(
            select(func.count()).select_from(Invoice).where(Invoice.batch_id == batch_id)
        )
        held = session.scalars(
            select(Task.seq).where(
                Task.batch_id == batch_id,
                or_(Task.state != TaskState.DONE, Task.lease_until.is_not(None)),
            )
        ).all()
    assert BatchStatus(batch.status).is_terminal
    if not is_proven:
        assert_reconciled()
    if batch.status == BatchStatus.FAILED:
        assert (rows, invoiced, held) == ([], 0, [])
        assert batch.errors
        return batch
    assert (invoiced, held) == (1, [])
    if lines is not None:
        assert batch.total == lines
    assert len(rows) == len({row.custom_id for row in rows}) == batch.total
    unrun = (batch.cancelled or 0) + (batch.expired or 0)
    assert batch.completed + batch.failed + unrun == batch.total
    charges = [row.amount for row in rows if row.amount is not None]
    with localcontext(money.EXACT), db.transaction() as session:
        assert invoices.of_batch(session, batch).total == sum(charges)
        kept = sums.of_tasks(session, batch_id, lines=batch.total)
        assert kept == sums.of_results(session, batch_id)
    written = {
        part: [
            json.loads(line)["custom_id"]
            for line in b"".join(results.chunks(batch_id, part)).splitlines()
        ]
        for part in FilePart
    }
    in_order = [row.custom_id for row in sorted(rows)]
    assert written[FilePart.OUTPUT] == [
        name for name in in_order if name not in set(written[FilePart.ERROR])
    ]
    assert (len(written[FilePart.OUTPUT]), len(written[FilePart.ERROR])) == (
        batch.completed,
        batch.failed + unrun,
    )
    assert len(charges) == batch.completed
    codes = {row.error_code for row in rows}
    ended_with = Counter(row.error_code for row in rows)
    assert (batch.cancelled, batch.expired) == (
        ended_with[LineError.BATCH_CANCELLED],
        ended_with[LineError.BATCH_EXPIRED],
    )
    assert (LineError.BATCH_CANCELLED in codes) <= (batch.status == BatchStatus.CANCELLED)
    assert (LineError.BATCH_EXPIRED in codes) == (batch.status == BatchStatus.EXPIRED)
    return batch


def assert_reconciled() -> None:
    """Assert that all charges and invoices follow from the results (`reconcile`)."""
    assert list(reconcile.differences()) == []

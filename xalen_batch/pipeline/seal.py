"""Seal: turn the rows of an ended batch into objects and columns (docs/decisions/0045).

The lines of its output and error file become one object each, byte for byte as a download rendered
them. The usage and the charge of each line become `sealed_lines`. One transaction checks them
against the batch and its invoice, and marks the batch as sealed; from then on nothing reads its
rows. Until then everything does, so a crash at any point loses nothing.
"""

import time
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Select, func, select, text, update
from sqlalchemy.orm import Session

from xalen_batch import db, log, results, storage
from xalen_batch.billing import reconcile
from xalen_batch.config import settings
from xalen_batch.models import Batch, File
from xalen_batch.models.batches import UNSEALED
from xalen_batch.models.files import FilePart
from xalen_batch.states import TERMINAL
from xalen_batch.storage import frames, marks

logger = log.get(__name__)

# Seconds after which the job ends; the poll starts it again while batches are left.
TURN = 3.0
# Seconds until a batch that could not be sealed is tried again.
PAUSE = 3_600.0
# Lines of a row of `sealed_lines`: enough for PostgreSQL to compress them well.
LINES_AT_ONCE = 10_000


class Unsealable(Exception):
    """The objects or columns of a batch differ from its counts, its invoice or its rows."""


class _LostLease(Exception):
    """Another process seals the batch."""


def is_due(session: Session) -> bool:
    """Whether a batch waits to be sealed."""
    return session.scalar(_waiting().limit(1)) is not None


def run() -> None:
    """Seal batches, the oldest first, until none is left or TURN seconds have passed.

    Raises if a store is away; the lease of the batch then runs out.
    """
    ends = time.monotonic() + TURN
    while time.monotonic() < ends:
        with db.transaction() as session:
            batch = _lease(session)
        if batch is None:
            return
        try:
            _seal(batch)
        except (_LostLease, FileNotFoundError) as error:
            # FileNotFoundError: a file was deleted meanwhile. The next attempt leaves it out.
            logger.info("batch.seal_again", batch_id=batch.id, reason=type(error).__name__)
        except Unsealable as error:
            logger.error("batch.unsealable", batch_id=batch.id, reason=str(error))
            with db.transaction() as session:
                _extend(session, batch, PAUSE)


def _waiting() -> Select[UUID]:
    """Ended batches that no process seals, by age."""
    return (
        select(Batch.id)
        .where(
            text(UNSEALED),
            Batch.status.in_(TERMINAL),
            (Batch.lease_until.is_(None)) | (Batch.lease_until < func.now()),
        )
        .order_by(Batch.id)
    )


def _lease(session: Session) -> Batch | None:
    """Lease the oldest batch and raise its fence."""
    free = _waiting().limit(1).with_for_update(skip_locked=True)
    return session.scalars(
        update(Batch)
        .where(Batch.id == free.scalar_subquery())
        .values(fence=Batch.fence + 1, lease_until=func.now() + timedelta(seconds=settings().lease))
        .returning(Batch)
        .execution_options(synchronize_session=False)
    ).one_or_none()


def _extend(session: Session, batch: Batch, seconds: float) -> None:
    """Hold the lease for more seconds. Raises _LostLease."""
    held = session.execute(
        update(Batch)
        .where(Batch.id == batch.id, Batch.fence == batch.fence)
        .values(lease_until=func.now() + timedelta(seconds=seconds))
        .returning(Batch.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if held is None:
        raise _LostLease


def _seal(batch: Batch) -> None:
    # Objects in another database's store would be lost.
    marks.confirm()
    with db.reading() as session:
        files = list(
            session.scalars(
                select(File).where(
                    File.id.in_([batch.output_file_id, batch.error_file_id]),
                    File.deleted_at.is_(None),
                )
            )
        )
    written = {file.id: _write(batch, file) for file in files}
    _pack(batch)
    with db.transaction() as session:
        gone = _mark(session, batch, written)
    for file_id in gone:
        storage.delete(storage.output_key(file_id))
    logger.info(
        "batch.sealed",
        batch_id=batch.id,
        lines=batch.total,
        bytes=sum(content.size for content in written.values()),
    )


def _write(batch: Batch, file: File) -> frames.Content:
    """Write a file's object and read it back."""
    key = storage.output_key(file.id)
    lines = results.chunks(batch.id, FilePart(file.part or ""))
    content = frames.write(key, _paced(batch, lines))
    if content.size != file.size:
        raise Unsealable(f"{file.part} file: {content.size} bytes in rows, {file.size} expected")
    if frames.read_back(key) != content:
        raise Unsealable(f"{file.part} file: the object differs from the rows")
    return content


def _paced(batch: Batch, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks. Renews the lease, and rests after each chunk for as long as it took.

    Lines that run meanwhile have the other half of the time.
    """
    renewal = settings().lease / 3
    renewed = begun = time.monotonic()
    for chunk in chunks:
        yield chunk
        took = time.monotonic() - begun
        if time.monotonic() - renewed > renewal:
            with db.transaction() as session:
                _extend(session, batch, settings().lease)
            renewed = time.monotonic()
        time.sleep(took)
        begun = time.monotonic()


# A sorted subquery without grouping: the aggregates read the lines in its order.
_PACK = text("""
    INSERT INTO sealed_lines (batch_id, first_line, lines, line_nos, models, status_codes, error_codes, flags,
        input_tokens, cached_tokens, output_tokens, reasoning_tokens, amounts)
    SELECT :batch_id, min(line_no), count(*), CASE WHEN max(line_no) - min(line_no) >= count(*) THEN array_agg(line_no) END,
        array_agg(model), array_agg(status_code), array_agg(error_code), array_agg(flag),
        array_agg(input_tokens), array_agg(cached_tokens), array_agg(output_tokens), array_agg(reasoning_tokens),
        CASE WHEN NOT bool_and(amount IS NOT DISTINCT FROM by_price) THEN array_agg(amount) END
    FROM (
        SELECT result.*, CASE WHEN status_code < 300 THEN
            input_tokens * coalesce(price.input, 0) + output_tokens * coalesce(price.output, 0) END AS by_price
        FROM (
            SELECT * FROM results WHERE batch_id = :batch_id AND line_no > :after ORDER BY line_no LIMIT :lines
        ) AS result
        LEFT JOIN (
            SELECT each.model, (price ->> 'input')::numeric * 0.000001 * (1 - discount_rate) AS input,
                (price ->> 'output')::numeric * 0.000001 * (1 - discount_rate) AS output
            FROM batches, jsonb_each(price_snapshot) AS each (model, price) WHERE id = :batch_id
        ) AS price USING (model)
        ORDER BY line_no
    ) AS line
    HAVING count(*) > 0
    RETURNING coalesce(line_nos[lines], first_line + lines - 1)
""")
_PACKED = text("""
    SELECT coalesce(line_nos[lines], first_line + lines - 1) FROM sealed_lines
    WHERE batch_id = :batch_id ORDER BY first_line DESC LIMIT 1
""")


def _pack(batch: Batch) -> None:
    """Insert the columns of all lines that have none yet, LINES_AT_ONCE in a transaction."""
    with db.reading() as session:
        after = session.scalar(_PACKED, {"batch_id": batch.id}) or 0
    while after is not None:
        with db.transaction() as session:
            _extend(session, batch, settings().lease)
            after = session.scalar(
                _PACK, {"batch_id": batch.id, "after": after, "lines": LINES_AT_ONCE}
            )


def _mark(session: Session, batch: Batch, written: dict[UUID, frames.Content]) -> list[UUID]:
    """Mark the batch as sealed and its files as objects; returns files that were deleted meanwhile.

    Raises Unsealable if reconcile finds a difference in the sealed lines, and _LostLease.
    """
    marked = session.execute(
        update(Batch)
        .where(Batch.id == batch.id, Batch.fence == batch.fence, Batch.sealed_at.is_(None))
        .values(sealed_at=func.now(), lease_until=None)
        .returning(Batch.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if marked is None:
        raise _LostLease
    for difference in reconcile.of_batches(session, [batch.id]):
        raise Unsealable(f"{difference.what}: {difference.found}, expected {difference.expected}")
    gone = []
    for file_id, content in written.items():
        kept = session.execute(
            update(File)
            .where(File.id == file_id, File.deleted_at.is_(None))
            .values(sha256=content.sha256, stored_bytes=content.stored_size)
            .returning(File.id)
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if kept is None:
            gone.append(file_id)
    return gone

"""Seal: turn the rows of an ended batch into objects and columns (docs/decisions/0045).

The lines of its output and error file become one object each, byte for byte as a download rendered
them. The usage and the charge of each line become `sealed_lines`. One transaction checks them
against the batch and its invoice, and marks the batch as sealed; from then on nothing reads its
rows. Until then everything does, so a crash at any point loses nothing. Small batches are sealed
together: alone, each would take 10 ms of CPU.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Select,
    SQLColumnExpression,
    Uuid,
    any_,
    bindparam,
    func,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.orm import Session

from xalen_batch import db, log, storage
from xalen_batch.billing import reconcile
from xalen_batch.config import settings
from xalen_batch.metrics import counted
from xalen_batch.models import Batch, File
from xalen_batch.models.batches import UNSEALED, has_status
from xalen_batch.models.files import FilePart
from xalen_batch.results import results
from xalen_batch.states import TERMINAL
from xalen_batch.storage import frames, marks

logger = log.get(__name__)

# Seconds after which the job ends; the poll starts it again while batches are left.
TURN = 3.0
# Seconds until a batch that could not be sealed is tried again.
PAUSE = 3_600.0
# Lines of a row of `sealed_lines`, enough for PostgreSQL to compress them well; and of all batches
# that are sealed together.
LINES_AT_ONCE = 10_000
BATCHES_AT_ONCE = 100


class Unsealable(Exception):
    """The objects or columns of a batch differ from its counts, its invoice or its rows."""


class _LostLease(Exception):
    """Another process seals the batch."""


def is_due(session: Session) -> bool:
    """Whether a batch waits to be sealed."""
    return session.scalar(_waiting().limit(1)) is not None


def run() -> None:
    """Seal batches, the oldest first, until none is left or TURN seconds have passed.

    Raises if a store is away; the leases then run out.
    """
    ends = time.monotonic() + TURN
    while time.monotonic() < ends:
        batches = _lease()
        if not batches:
            return
        try:
            _seal(batches)
        except (Unsealable, _LostLease, FileNotFoundError):
            # One of them would stop the others again and again.
            for batch in batches:
                _seal_alone(batch)


def _seal_alone(batch: Batch) -> None:
    try:
        _seal([batch])
    except (_LostLease, FileNotFoundError) as error:
        # FileNotFoundError: a file was deleted meanwhile. The next attempt leaves it out.
        logger.info("batch.seal_again", batch_id=batch.id, reason=type(error).__name__)
    except Unsealable as error:
        counted.UNSEALABLE.inc()
        logger.error("batch.unsealable", batch_id=batch.id, reason=str(error))
        with db.transaction() as session:
            _extend(session, [batch], PAUSE)


def _waiting() -> Select[UUID]:
    """Ended batches that no process seals, by age."""
    return select(Batch.id).where(text(UNSEALED), *_IS_FREE).order_by(Batch.id)


_IS_FREE = (
    has_status(*sorted(TERMINAL)),
    (Batch.lease_until.is_(None)) | (Batch.lease_until < func.now()),
)


def _lease() -> list[Batch]:
    """Lease the oldest batches and raise their fences.

    At most BATCHES_AT_ONCE with LINES_AT_ONCE lines in all, or one with more.
    """
    with db.transaction() as session:
        chosen: list[UUID] = []
        lines = 0
        for id, total in session.execute(
            _waiting().add_columns(Batch.total).limit(BATCHES_AT_ONCE)
        ):
            lines += total
            if chosen and lines > LINES_AT_ONCE:
                break
            chosen.append(id)
        # SKIP LOCKED: two processes that chose the same batches share them.
        free = select(Batch.id).where(_is_any_of(Batch.id, chosen), *_IS_FREE)
        leased = session.scalars(
            update(Batch)
            .where(Batch.id.in_(free.with_for_update(skip_locked=True)))
            .values(
                fence=Batch.fence + 1, lease_until=func.now() + timedelta(seconds=settings().lease)
            )
            .returning(Batch)
            .execution_options(synchronize_session=False)
        )
        return list(leased)


def _extend(session: Session, batches: Sequence[Batch], seconds: float) -> None:
    """Hold the leases for more seconds. Raises _LostLease if one is lost."""
    held = session.execute(
        update(Batch)
        .where(_are(batches))
        .values(lease_until=func.now() + timedelta(seconds=seconds))
        .returning(Batch.id)
        .execution_options(synchronize_session=False)
    ).all()
    if len(held) < len(batches):
        raise _LostLease


def _are(batches: Sequence[Batch]) -> ColumnElement[bool]:
    """Whether a row is one of these batches, with the fence of our lease."""
    ids = bindparam(None, [batch.id for batch in batches], ARRAY(Uuid))
    fences = bindparam(None, [batch.fence for batch in batches], ARRAY(BigInteger))
    held = func.unnest(ids, fences).table_valued("id", "fence").render_derived()
    return tuple_(Batch.id, Batch.fence).in_(select(held.c.id, held.c.fence))


def _is_any_of(column: SQLColumnExpression[UUID], ids: Sequence[UUID]) -> ColumnElement[bool]:
    """As `column.in_(ids)`, by the same statement for any number of ids, which stays prepared."""
    return column == any_(bindparam(None, ids, ARRAY(Uuid)))


def _seal(batches: Sequence[Batch]) -> None:
    # Objects in another database's store would be lost.
    marks.confirm()
    renewal = _Renewal(batches)
    written = {}
    for file in _files(batches):
        written[file.id] = _write(file, renewal)
    _pack(batches)
    with db.transaction() as session:
        gone = _mark(session, batches, written)
    for file_id in gone:
        storage.delete(storage.output_key(file_id))
    logger.info(
        "batches.sealed",
        batches=len(batches),
        lines=sum(batch.total for batch in batches),
        bytes=sum(content.size for content in written.values()),
    )


def _files(batches: Sequence[Batch]) -> Sequence[File]:
    """The output and error files that are not deleted."""
    ids = [id for batch in batches for id in (batch.output_file_id, batch.error_file_id) if id]
    with db.reading() as session:
        return session.scalars(
            select(File).where(_is_any_of(File.id, ids), File.deleted_at.is_(None))
        ).all()


class _Renewal:
    """Renews the leases of batches. Used by the thread that seals them."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self._renewed = time.monotonic()

    def renew(self) -> None:
        """Extend the leases if a third of their time has passed. Raises _LostLease."""
        if time.monotonic() - self._renewed > settings().lease / 3:
            with db.transaction() as session:
                _extend(session, self._batches, settings().lease)
            self._renewed = time.monotonic()


def _write(file: File, renewal: _Renewal) -> frames.Content:
    """Write a file's object and read it back."""
    assert file.batch_id is not None
    key = storage.output_key(file.id)
    lines = results.chunks(file.batch_id, FilePart(file.part or ""))
    content = frames.write(key, _paced(renewal, lines))
    if content.size != file.size:
        _refuse_deleted(file)
        raise Unsealable(f"{file.part} file: {content.size} bytes in rows, {file.size} expected")
    if _read_back(key, renewal) != content:
        raise Unsealable(f"{file.part} file: the object differs from the rows")
    return content


def _refuse_deleted(file: File) -> None:
    """Raise FileNotFoundError for a file that was deleted meanwhile, and delete its object."""
    with db.reading() as session:
        kept = select(File.id).where(File.id == file.id, File.deleted_at.is_(None))
        if session.scalar(kept) is None:
            storage.delete(storage.output_key(file.id))
            raise FileNotFoundError(f"file {file.id} was deleted")


def _read_back(key: str, renewal: _Renewal) -> frames.Content:
    """The content of an object as it is stored now, by reading all of it."""
    reader, digest = frames.Reader(key), hashlib.sha256()
    for chunk in _paced(renewal, reader.chunks()):
        digest.update(chunk)
    return frames.Content(reader.size, digest.digest(), reader.stored_size)


def _paced(renewal: _Renewal, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks. Renews the lease, and rests after each chunk for as long as it took.

    Lines that run meanwhile have the other half of the time.
    """
    begun = time.monotonic()
    for chunk in chunks:
        yield chunk
        took = time.monotonic() - begun
        renewal.renew()
        time.sleep(took)
        begun = time.monotonic()


# The aggregates read the lines in the order of the subquery.
_PACK = text("""
    INSERT INTO sealed_lines (batch_id, first_line, lines, line_nos, models, status_codes, error_codes, flags,
        input_tokens, cached_tokens, output_tokens, reasoning_tokens, amounts)
    SELECT batch_id, min(line_no), count(*), CASE WHEN max(line_no) - min(line_no) >= count(*) THEN array_agg(line_no) END,
        array_agg(model), array_agg(status_code), array_agg(error_code), array_agg(flag),
        array_agg(input_tokens), array_agg(cached_tokens), array_agg(output_tokens), array_agg(reasoning_tokens),
        CASE WHEN NOT bool_and(amount IS NOT DISTINCT FROM by_price) THEN array_agg(amount) END
    FROM (
        SELECT result.*, CASE WHEN status_code < 300 THEN
            (input_tokens - cached_tokens) * coalesce(price.input, 0) + cached_tokens * coalesce(price.cached, price.input, 0)
            + output_tokens * coalesce(price.output, 0) END AS by_price
        FROM (
            SELECT * FROM results WHERE batch_id = ANY(:ids) AND line_no > :after ORDER BY batch_id, line_no LIMIT :lines
        ) AS result
        LEFT JOIN (
            SELECT batches.id AS batch_id, each.model, (price ->> 'input')::numeric * 0.000001 * (1 - discount_rate) AS input,
                (price ->> 'cached_input')::numeric * 0.000001 * (1 - discount_rate) AS cached,
                (price ->> 'output')::numeric * 0.000001 * (1 - discount_rate) AS output
            FROM batches, jsonb_each(price_snapshot) AS each (model, price) WHERE batches.id = ANY(:ids)
        ) AS price USING (batch_id, model)
        ORDER BY batch_id, line_no
    ) AS line
    GROUP BY batch_id
    RETURNING coalesce(line_nos[lines], first_line + lines - 1)
""")
_PACKED = text("""
    SELECT DISTINCT ON (batch_id) batch_id, coalesce(line_nos[lines], first_line + lines - 1) FROM sealed_lines
    WHERE batch_id = ANY(:ids) ORDER BY batch_id, first_line DESC
""")


def _pack(batches: Sequence[Batch]) -> None:
    """Insert the columns of all lines that have none yet, LINES_AT_ONCE in a transaction."""
    ids = [batch.id for batch in batches]
    with db.reading() as session:
        packed: dict[UUID, int] = dict(session.execute(_PACKED, {"ids": ids}).all())
    if len(batches) > 1:
        # Together they have at most LINES_AT_ONCE lines.
        _pack_some(batches, [id for id in ids if id not in packed], 0)
        return
    after: int | None = packed.get(ids[0], 0)
    while after is not None:
        after = _pack_some(batches, ids, after)


def _pack_some(batches: Sequence[Batch], ids: Sequence[UUID], after: int) -> int | None:
    """Pack the next lines of these batches; the last number of one of them. None: no line is left."""
    with db.transaction() as session:
        _extend(session, batches, settings().lease)
        values = {"ids": ids, "after": after, "lines": LINES_AT_ONCE}
        last: int | None = session.execute(_PACK, values).scalars().first()
        return last


# Returns the files that are there: others were deleted meanwhile.
_STORED = text("""
    UPDATE files SET sha256 = object.sha256, stored_bytes = object.stored
    FROM unnest(CAST(:ids AS uuid[]), CAST(:hashes AS bytea[]), CAST(:stored AS bigint[])) AS object (id, sha256, stored)
    WHERE files.id = object.id AND deleted_at IS NULL RETURNING files.id
""")


def _mark(
    session: Session, batches: Sequence[Batch], written: Mapping[UUID, frames.Content]
) -> set[UUID]:
    """Mark batches as sealed and their files as objects; returns files that were deleted meanwhile.

    Raises Unsealable if reconcile finds a difference in the sealed lines, and _LostLease.
    """
    marked = session.execute(
        update(Batch)
        .where(_are(batches), Batch.sealed_at.is_(None))
        .values(sealed_at=func.now(), lease_until=None)
        .returning(Batch.id)
        .execution_options(synchronize_session=False)
    ).all()
    if len(marked) < len(batches):
        raise _LostLease
    if sum(batch.total for batch in batches) <= LINES_AT_ONCE:
        # Planning the checks of a few batches takes several times as long as running them.
        db.plan_generically(session)
    else:
        # The checks of a batch of many million lines take minutes.
        db.lift_timeouts(session)
    for difference in reconcile.of_batches(session, [batch.id for batch in batches]):
        raise Unsealable(f"{difference.what}: {difference.found}, expected {difference.expected}")
    objects = {
        "ids": list(written),
        "hashes": [content.sha256 for content in written.values()],
        "stored": [content.stored_size for content in written.values()],
    }
    return set(written) - set(session.execute(_STORED, objects).scalars())

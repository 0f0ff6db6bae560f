"""Lists of an owner's batches, with filters that each have an index.

The ids of a page come from an index alone; only the rows of these ids are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from xalen_batch import paging
from xalen_batch.accounts.accounts import Owner
from xalen_batch.models import Batch, BatchNote
from xalen_batch.paging import Order, Page

# An id has the time of its creation by the clock of the process, `created_at` by PostgreSQL's.
CLOCKS_DIFFER = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class BatchFilters:
    """The conditions of a list, all of which a batch must meet; None: any.

    `created_after` is included in the span, `created_before` is not.
    """

    status: str | None = None
    model: str | None = None
    endpoint: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    schedule_id: UUID | None = None


def page(
    session: Session,
    owner: Owner,
    filters: BatchFilters,
    *,
    limit: int,
    order: Order = "desc",
    after: str | None,
) -> Page[Batch]:
    """A page of the owner's batches by creation. Queued calls and ledgers are in no list."""
    rows, id = _filtered(owner, filters)
    found = paging.page(session, rows, id, "batch", limit=limit, order=order, after=after)
    batches = {
        batch.id: batch for batch in session.scalars(select(Batch).where(Batch.id.in_(found.data)))
    }
    return Page([batches[id] for id in found.data], found.has_more)


def _filtered(
    owner: Owner, filters: BatchFilters
) -> tuple[Select[UUID], InstrumentedAttribute[UUID]]:
    """The ids of the batches that meet the filters, and the column that they are ordered by.

    With pairs of metadata the notes of the first pair are read, which are in the order of creation.
    """
    conditions = _conditions(filters)
    if not filters.metadata:
        return select(Batch.id).where(*_listed(owner), *conditions, *_span(filters, Batch.id)), (
            Batch.id
        )
    first, *others = (func.metadata_pair(*pair) for pair in sorted(filters.metadata.items()))
    rows = select(BatchNote.batch_id).where(
        *_noted(BatchNote, owner, first), *_span(filters, BatchNote.batch_id)
    )
    for pair in others:
        other = aliased(BatchNote)
        both = select(other.batch_id).where(
            *_noted(other, owner, pair), other.batch_id == BatchNote.batch_id
        )
        rows = rows.where(both.exists())
    if conditions:
        batch = select(Batch.id).where(*_listed(owner), *conditions, Batch.id == BatchNote.batch_id)
        rows = rows.where(batch.exists())
    return rows, BatchNote.batch_id


def _listed(owner: Owner) -> list[ColumnElement[bool]]:
    return [
        Batch.account_id == owner.account_id,
        Batch.livemode == owner.livemode,
        Batch.ledger.is_(None),
        Batch.call.is_(None),
    ]


def _noted(note: type[BatchNote], owner: Owner, pair: object) -> list[ColumnElement[bool]]:
    return [
        note.account_id == owner.account_id,
        note.livemode == owner.livemode,
        note.pair == pair,
    ]


def _conditions(filters: BatchFilters) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    for name in ("status", "model", "endpoint", "schedule_id"):
        value = getattr(filters, name)
        if value is not None:
            found.append(getattr(Batch, name) == value)
    if filters.created_after is not None:
        found.append(Batch.created_at >= filters.created_after)
    if filters.created_before is not None:
        found.append(Batch.created_at < filters.created_before)
    return found


def _span(filters: BatchFilters, id: InstrumentedAttribute[UUID]) -> list[ColumnElement[bool]]:
    """The range of ids that were made in the span of time: ids sort by creation."""
    found: list[ColumnElement[bool]] = []
    if filters.created_after is not None:
        found.append(id >= func.lowest_id(filters.created_after - CLOCKS_DIFFER))
    if filters.created_before is not None:
        found.append(id < func.lowest_id(filters.created_before + CLOCKS_DIFFER))
    return found

"""Pages of lists: keyset pagination over ids, which sort by creation."""

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from xalen_batch import ids
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest

T = TypeVar("T")
Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    data: list[T]
    has_more: bool


def page(
    session: Session,
    rows: Select[T],
    id: InstrumentedAttribute[UUID],
    kind: ids.Kind,
    *,
    limit: int,
    order: Order,
    after: str | None,
) -> Page[T]:
    """The next `limit` rows in the order of creation, from the id `after` on.

    The object `after` may have been deleted since, so callers can delete while they list. Raises
    InvalidRequest if `after` is not an id of this kind.
    """
    if after is not None:
        last = ids.parse(kind, after)
        if last is None:
            raise InvalidRequest(
                f"after: {after[:QUOTED_CHARS]!r} is not the id of a {ids.NOUNS[kind]}. Send the"
                " last id of the page before.",
                param="after",
            )
        rows = rows.where(id < last if order == "desc" else id > last)
    found = list(session.scalars(rows.order_by(_ordered(id, order)).limit(limit + 1)))
    return Page(found[:limit], len(found) > limit)


def _ordered(id: InstrumentedAttribute[UUID], order: Order) -> Any:
    return id.desc() if order == "desc" else id.asc()

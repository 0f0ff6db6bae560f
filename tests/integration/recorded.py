"""The events that were recorded, for tests."""

from uuid import UUID

from sqlalchemy import select

from xalen_batch import db
from xalen_batch.models import Event


def recorded() -> list[tuple[str, UUID]]:
    """All events by their time: type and object."""
    with db.reading() as session:
        rows = session.execute(select(Event.type, Event.object_id).order_by(Event.id))
        return [(type, object_id) for type, object_id in rows]


def types() -> list[str]:
    return [type for type, _ in recorded()]

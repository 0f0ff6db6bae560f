"""The body of a delivery: OpenAI's event, in compact JSON."""

from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import orjson

from xalen_batch import ids
from xalen_batch.models.events import object_kind


class AnEvent(Protocol):
    """An event as a row of its table, or with its delivery."""

    @property
    def event_id(self) -> UUID: ...
    @property
    def type(self) -> str: ...
    @property
    def object_id(self) -> UUID: ...
    @property
    def created_at(self) -> datetime: ...


def event_id(event: AnEvent) -> str:
    return ids.render("evt", event.event_id)


def fields(event: AnEvent) -> dict[str, Any]:
    """The event as receivers and lists show it: exactly these keys, in this order."""
    return {
        "id": event_id(event),
        "object": "event",
        "created_at": int(event.created_at.timestamp()),
        "type": event.type,
        "data": {"id": ids.render(object_kind(event.type), event.object_id)},
    }


def body(event: AnEvent) -> bytes:
    """The bytes that are signed and sent."""
    return orjson.dumps(fields(event))

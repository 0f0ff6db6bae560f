"""The events of a batch: a stream of its status and counts until its end."""

from collections.abc import Collection
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from sqlalchemy import select

from xalen_batch import db
from xalen_batch.api.batches import PATH, shown
from xalen_batch.api.deps import BriefReader
from xalen_batch.api.http.event_feed import Feed, State
from xalen_batch.api.http.event_stream import EventStream
from xalen_batch.api.schemas import BatchObject
from xalen_batch.batches import batches
from xalen_batch.models import Batch
from xalen_batch.states import BatchStatus

router = APIRouter(prefix=PATH, tags=["extensions"])
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": (
            "Server-sent events. The data of each is the batch as lists show it. `progress` for"
            " each change, and `batch.completed`, `batch.failed`, `batch.expired` or"
            " `batch.cancelled` as the last one."
        ),
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "The client has the last event already, by its `Last-Event-ID`."},
}


def _read(batch_ids: Collection[UUID]) -> dict[UUID, State]:
    """The states of batches. Their owners were checked when their streams began."""
    with db.reading() as session:
        found = session.scalars(select(Batch).where(Batch.id.in_(batch_ids))).all()
        objects = shown(session, found)
    return {batch.id: _state(object) for batch, object in zip(found, objects, strict=True)}


def _state(shown: BatchObject) -> State:
    end = shown.status if BatchStatus(shown.status).is_terminal else None
    return State(shown.model_dump_json().encode(), end)


# One for all apps of a process, as the connection pool.
feed = Feed(_read)


@router.get("/{batch_id}/events", response_class=Response, responses=STREAMED)
def stream_batch_events(request: Request, caller: BriefReader, batch_id: str) -> Response:
    """The state of a batch now, each change, and its end.

    A client that sends the `Last-Event-ID` of a broken stream gets the present state, unless that
    is the one. The stream ends with the batch, after ten minutes, or when the server stops.
    """
    with db.reading() as session:
        batch = batches.get(session, caller, batch_id)
        state = _state(shown(session, [batch])[0])
    seen = request.headers.get("last-event-id")
    if state.end is not None and state.id == seen:
        # Tells browsers not to connect again.
        return Response(status_code=204)
    return EventStream(feed, batch.id, state, seen)

"""/v1/messages/batches: Anthropic's Message Batches."""

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy import func, update
from sqlalchemy.orm import Session

from xalen_batch import db, files, ids, storage
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api import idempotency
from xalen_batch.api.anthropic import objects, results
from xalen_batch.api.anthropic.intake import Received
from xalen_batch.api.anthropic.objects import (
    PATH,
    DeletedMessageBatch,
    MessageBatch,
    MessageBatchList,
    MessageError,
)
from xalen_batch.api.deps import BriefReader, IdempotencyKey, calling
from xalen_batch.api.http.responses import Stream, stored
from xalen_batch.batches import batches
from xalen_batch.endpoints.names import CHAT
from xalen_batch.errors import Conflict, InvalidRequest, NotFound
from xalen_batch.files import Purpose
from xalen_batch.models import Batch
from xalen_batch.states import BatchStatus, OnInvalid

WINDOW = "24h"
FILENAME = "message_batch.jsonl"
JSONL = "application/x-jsonl"
_DESCRIBED: dict[int | str, str] = {
    400: "Something in the request is wrong; the message names it.",
    401: "There is no valid API key.",
    403: "The key lacks the scope that the route needs.",
    404: "No such object.",
    429: "A quota is full, or requests come too fast; `retry-after` gives the wait.",
    "4XX": "Another error of the request.",
    500: "A fault of the server, which is logged.",
    503: "A store of the server is away; `retry-after` gives the wait.",
    "5XX": "Another failure of the server.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": MessageError, "description": description}
    for status, description in _DESCRIBED.items()
}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["requests"],
                    "properties": {
                        "requests": {
                            "type": "array",
                            "minItems": 1,
                            "items": {
                                "type": "object",
                                "required": ["custom_id", "params"],
                                "properties": {
                                    "custom_id": {"type": "string"},
                                    "params": {
                                        "type": "object",
                                        "description": "The body of a Messages request.",
                                    },
                                },
                            },
                        }
                    },
                }
            }
        },
    }
}
LINES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A result as JSON on each line.",
        "content": {JSONL: {"schema": {"type": "string"}}},
    }
}

router = APIRouter(prefix=PATH, tags=["message batches"], responses=ERRORS)


def origin(request: Request) -> str:
    """The URL of this server, as the client has it."""
    return str(request.base_url).rstrip("/")


Origin = Annotated[str, Depends(origin)]


@router.post("", response_model=MessageBatch, openapi_extra=BODY)
def create_message_batch(intake: Received, origin: Origin, key: IdempotencyKey = None) -> Response:
    """Start a batch of Messages requests.

    A request that is not valid ends as `errored`; the others run.
    """
    with db.transaction() as session:

        def create() -> bytes:
            file = files.create(
                session,
                intake.caller,
                id=intake.id,
                purpose=Purpose.BATCH,
                filename=FILENAME,
                size=intake.written.size,
                sha256=intake.written.sha256,
            )
            batch = batches.create(
                session,
                intake.caller,
                input_file_id=ids.render("file", file.id),
                endpoint=CHAT,
                completion_window=WINDOW,
                on_invalid=OnInvalid.SKIP,
            )
            batch.requests = intake.written.requests
            session.flush()
            return MessageBatch.of(batch, origin).model_dump_json().encode()

        answer = idempotency.once(
            session,
            intake.caller,
            key,
            route=f"POST {PATH}",
            fingerprint=intake.fingerprint,
            create=create,
        )
    if answer.is_replay:
        # The file has the requests of the first call.
        storage.delete(storage.key(intake.id))
    return stored(answer)


@router.get("", response_model=MessageBatchList)
@calling(Scope.READ)
def list_message_batches(
    session: Session,
    caller: Caller,
    origin: Origin,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 20,
    after_id: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    before_id: Annotated[str | None, Query(description="The first id of the page behind.")] = None,
) -> MessageBatchList:
    """Batches of chat requests, newest first, whichever API made them."""
    return objects.page(
        session, caller, limit=limit, after_id=after_id, before_id=before_id, origin=origin
    )


@router.get("/{message_batch_id}", response_model=MessageBatch)
@calling(Scope.READ)
def retrieve_message_batch(
    session: Session, caller: Caller, message_batch_id: str, origin: Origin
) -> MessageBatch:
    batch = objects.get(session, caller, message_batch_id)
    return objects.shown(session, [batch], origin)[0]


@router.post("/{message_batch_id}/cancel", response_model=MessageBatch)
@calling(Scope.SUBMIT)
def cancel_message_batch(
    session: Session, caller: Caller, message_batch_id: str, origin: Origin
) -> MessageBatch:
    """Start no further request. A batch that has ended, or is about to, stays as it is."""
    batch = objects.get(session, caller, message_batch_id)
    with suppress(Conflict):
        batch = batches.cancel(session, batch)
    return objects.shown(session, [batch], origin)[0]


@router.delete("/{message_batch_id}", response_model=DeletedMessageBatch)
@calling(Scope.SUBMIT)
def delete_message_batch(
    session: Session, caller: Caller, message_batch_id: str
) -> DeletedMessageBatch:
    """Delete a batch that has ended: its requests and its results. Its charge is kept."""
    batch = objects.get(session, caller, message_batch_id)
    if not BatchStatus(batch.status).is_terminal:
        raise InvalidRequest(
            f"{message_batch_id} has not ended. Cancel it first, and delete it once its"
            " processing_status is ended."
        )
    deleted = session.execute(
        update(Batch)
        .where(Batch.id == batch.id, Batch.deleted_at.is_(None))
        .values(deleted_at=func.now())
        .returning(Batch.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if deleted is None:
        raise NotFound(f"There is no message batch {message_batch_id!r}.")
    for file_id in (batch.output_file_id, batch.error_file_id, batch.input_file_id):
        # It may be gone already, or another batch or a schedule reads it, and keeps it.
        with suppress(NotFound, InvalidRequest, Conflict):
            if file_id is not None:
                files.delete(session, caller, ids.render("file", file_id))
    return DeletedMessageBatch(id=message_batch_id)


@router.get("/{message_batch_id}/results", response_class=Response, responses=LINES)
def get_message_batch_results(caller: BriefReader, message_batch_id: str) -> Response:
    """The results of a batch that has ended: first those that succeeded, then the others."""
    with db.transaction() as session:
        pieces = results.of(session, caller, objects.get(session, caller, message_batch_id))
    return Stream(pieces, media_type=JSONL)

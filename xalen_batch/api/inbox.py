"""/v1/schedules/{id}/requests: requests for a schedule's inbox, run by its next run."""

import hashlib
from contextlib import nullcontext
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response

from xalen_batch import db
from xalen_batch.api import idempotency, long_work, schedules
from xalen_batch.api.deps import BriefSubmitter, IdempotencyKey
from xalen_batch.api.http.responses import stored_for
from xalen_batch.api.schedule_schemas import RequestsObject
from xalen_batch.schedules import collect as collecting
from xalen_batch.schedules import schedules as registry
from xalen_batch.schedules.collect_lines import Kind
from xalen_batch.validation import apart

PATH = f"{schedules.PATH}/{{schedule_id}}/requests"
router = APIRouter(prefix=schedules.PATH, tags=["schedules"])

LINE: dict[str, Any] = {
    "type": "object",
    "required": ["custom_id", "method", "url", "body"],
    "properties": {
        "custom_id": {"type": "string"},
        "method": {"type": "string", "enum": ["POST"]},
        "url": {"type": "string"},
        "body": {"type": "object"},
    },
}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        LINE,
                        {"type": "array", "items": LINE},
                        {
                            "type": "object",
                            "required": ["requests"],
                            "properties": {"requests": {"type": "array", "items": LINE}},
                        },
                    ]
                }
            },
            "application/jsonl": {
                "schema": {"type": "string", "description": "One line object on each line."}
            },
        },
    }
}


def addressed(caller: BriefSubmitter, schedule_id: str, key: IdempotencyKey = None) -> None:
    """Refuse a request for a schedule that cannot take it, before its body is read.

    NotFound if the caller has no such schedule; InvalidRequest if it has no inbox or has ended.
    """
    with db.reading() as session:
        if key is not None:
            # A retry gets its stored answer, even if the schedule was deleted or ended meanwhile.
            registry.past(session, caller, schedule_id)
        else:
            collecting.refuse_if_never_run(registry.get(session, caller, schedule_id))


async def whole(request: Request, _: Annotated[None, Depends(addressed)]) -> bytes:
    """The body as it was sent, once its caller and schedule are known.

    The middleware bounds its size. Called on the event loop's thread.
    """
    return await request.body()


@router.post("/{schedule_id}/requests", response_model=RequestsObject, openapi_extra=BODY)
def add_requests(
    caller: BriefSubmitter,
    body: Annotated[bytes, Depends(whole)],
    schedule_id: str,
    content_type: Annotated[str | None, Header(include_in_schema=False)] = None,
    key: IdempotencyKey = None,
) -> Response:
    """Add requests to the inbox, for the next run: all of them, or none.

    Each is checked as a line of an upload. Once they are answered, they are stored. A request that
    waits already with the same content is known, and not added again.
    """
    kind = _kind(content_type or "")
    route = f"POST {PATH}"
    fingerprint = hashlib.sha256(f"{schedule_id}\n{kind}\n".encode() + body).digest()
    with db.reading() as session:
        answer = idempotency.kept(session, caller, key, route=route, fingerprint=fingerprint)
        if answer is not None:
            return stored_for(caller, answer, RequestsObject)
        schedule = registry.get(session, caller, schedule_id)
    is_large = len(body) > apart.SMALL_BYTES
    with long_work.admitted(caller) if is_large else nullcontext():
        sent = collecting.check(caller, schedule, body, kind)
    with db.transaction() as session:

        def create() -> bytes:
            kept = registry.keep(session, caller, schedule_id)
            added = collecting.collect(session, kept, sent)
            return RequestsObject.of(kept, added).model_dump_json().encode()

        answer = idempotency.once(
            session, caller, key, route=route, fingerprint=fingerprint, create=create
        )
        return stored_for(caller, answer, RequestsObject)


def _kind(content_type: str) -> Kind:
    """`json` for a body of one JSON value, `jsonl` for one value on each line."""
    kind = content_type.partition(";")[0].strip().lower()
    is_lines = kind == "text/plain" or any(
        name in kind for name in ("jsonl", "json-lines", "ndjson")
    )
    return "jsonl" if is_lines else "json"

"""/v1/batches"""

import hashlib
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Response

from xalen_batch import batches, idempotency
from xalen_batch.api.deps import IdempotencyKey, Reader, Submitter, Transaction
from xalen_batch.api.responses import stored
from xalen_batch.api.schemas import BatchObject, BatchRequest, ListObject, listing
from xalen_batch.batches import Progress

PATH = "/v1/batches"
router = APIRouter(prefix=PATH, tags=["batches"])


@router.post("", response_model=BatchObject)
def create_batch(body: BatchRequest, session: Transaction, caller: Submitter, key: IdempotencyKey = None) -> Response:
    """Start a batch over an uploaded file, at the prices and the discount of this moment."""

    def create() -> bytes:
        batch = batches.create(
            session,
            caller,
            input_file_id=body.input_file_id,
            endpoint=body.endpoint,
            completion_window=body.completion_window,
            metadata=body.metadata,
            output_expires_after=None if body.output_expires_after is None else body.output_expires_after.seconds,
        )
        return BatchObject.of(batch, Progress()).model_dump_json().encode()

    fingerprint = hashlib.sha256(orjson.dumps(body.model_dump(), option=orjson.OPT_SORT_KEYS)).digest()
    return stored(idempotency.once(session, caller, key, route=f"POST {PATH}", fingerprint=fingerprint, create=create))


@router.get("")
def list_batches(
    session: Transaction,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
) -> ListObject[BatchObject]:
    """Batches, newest first."""
    page = batches.page(session, caller, limit=limit, after=after)
    progress = batches.progress(session, page.data)
    return listing(page, [BatchObject.of(batch, progress[batch.id]) for batch in page.data])


@router.get("/{batch_id}")
def get_batch(session: Transaction, caller: Reader, batch_id: str) -> BatchObject:
    batch = batches.get(session, caller, batch_id)
    return BatchObject.of(batch, batches.progress(session, [batch])[batch.id])


@router.post("/{batch_id}/cancel")
def cancel_batch(session: Transaction, caller: Submitter, batch_id: str) -> BatchObject:
    """Start no further line. What has finished is kept, delivered and billed. Any body is ignored."""
    batch = batches.cancel(session, batches.get(session, caller, batch_id))
    return BatchObject.of(batch, batches.progress(session, [batch])[batch.id])

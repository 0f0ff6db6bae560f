"""/v1/batches"""

import hashlib
from collections.abc import Sequence
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from xalen_batch import batches, db, ids, waits
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api import idempotency
from xalen_batch.api.deps import IdempotencyKey, calling
from xalen_batch.api.http.responses import listed, stored
from xalen_batch.api.schemas import BatchObject, BatchRequest, ListObject
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Batch
from xalen_batch.states import OnInvalid

PATH = "/v1/batches"
# Batches of a list that are read and rendered at a time: the errors of each may take some 300 KB.
PORTION = 10
router = APIRouter(prefix=PATH, tags=["batches"])


@router.post("", response_model=BatchObject)
@calling(Scope.SUBMIT)
def create_batch(
    session: Session, caller: Caller, body: BatchRequest, key: IdempotencyKey = None
) -> Response:
    """Start a batch over an uploaded file, at the prices and the discount of this moment."""

    def create() -> bytes:
        batch = batches.create(
            session,
            caller,
            input_file_id=body.input_file_id,
            endpoint=body.endpoint,
            completion_window=body.completion_window,
            metadata=body.metadata,
            output_expires_after=(
                None if body.output_expires_after is None else body.output_expires_after.seconds
            ),
            execution_window=body.execution_window,
            on_invalid=body.on_invalid or OnInvalid.FAIL,
        )
        return _shown(session, [batch])[0].model_dump_json().encode()

    fingerprint = hashlib.sha256(
        orjson.dumps(body.model_dump(exclude=_unsaid(body)), option=orjson.OPT_SORT_KEYS)
    ).digest()
    return stored(
        idempotency.once(
            session, caller, key, route=f"POST {PATH}", fingerprint=fingerprint, create=create
        )
    )


@router.get("", response_model=ListObject[BatchObject])
@calling(Scope.READ)
def list_batches(
    session: Session,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    schedule_id: Annotated[
        str | None, Query(description="Only batches that this schedule made, `sched_…`.")
    ] = None,
) -> Response:
    """Batches, newest first."""
    schedule = None if schedule_id is None else ids.parse("sched", schedule_id)
    if schedule is None and schedule_id is not None:
        raise InvalidRequest(
            f"schedule_id: {schedule_id[:100]!r} is not the id of a schedule. Send one such as"
            " `sched_…`.",
            param="schedule_id",
        )

    def page(session: Session, limit: int, after: str | None) -> ListObject[BatchObject]:
        found = batches.page(session, caller, limit=limit, after=after, schedule_id=schedule)
        return ListObject[BatchObject].of(_shown(session, found.data), found.has_more)

    return listed(session, caller, page, limit=limit, after=after, portion=PORTION)


@router.get("/{batch_id}")
@calling(Scope.READ)
def retrieve_batch(session: Session, caller: Caller, batch_id: str) -> BatchObject:
    return _shown(session, [batches.get(session, caller, batch_id)])[0]


@router.post("/{batch_id}/cancel")
@calling(Scope.SUBMIT)
def cancel_batch(session: Session, caller: Caller, batch_id: str) -> BatchObject:
    """Start no further line.

    What has finished is kept, delivered and billed. Any body is ignored.
    """
    return _shown(session, [batches.cancel(session, batches.get(session, caller, batch_id))])[0]


def _unsaid(body: BatchRequest) -> set[str]:
    """Fields younger than stored idempotency keys, where they say nothing: a repeated request has
    the fingerprint that it had before.
    """
    return {"on_invalid"} if body.on_invalid in (None, OnInvalid.FAIL) else set()


def _shown(session: Session, found: Sequence[Batch]) -> list[BatchObject]:
    progress = batches.progress(session, found)
    waiting = waits.of(session, found)
    # Only a batch with an execution window needs the time, and asking costs a round trip.
    now = db.now(session) if any(batch.execution_window for batch in found) else None
    return [
        BatchObject.of(batch, progress[batch.id], now, waiting.get(batch.id)) for batch in found
    ]

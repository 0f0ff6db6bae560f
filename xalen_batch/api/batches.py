"""/v1/batches, and as an extension the output and errors of a batch that still runs."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy.orm import Session

from xalen_batch import db, files, ids
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api import batch_requests, idempotency
from xalen_batch.api.batch_filters import METADATA, asked
from xalen_batch.api.deps import BriefReader, IdempotencyKey, calling
from xalen_batch.api.description import downloaded
from xalen_batch.api.http.downloads import download
from xalen_batch.api.http.raw_fields import keeping
from xalen_batch.api.http.responses import listed, stored
from xalen_batch.api.schemas import BatchObject, BatchRequest, ListObject
from xalen_batch.batches import batches, lists, outlook, waits
from xalen_batch.batches.batches import Progress
from xalen_batch.batches.lists import BatchFilters
from xalen_batch.models import Batch
from xalen_batch.models.files import FilePart
from xalen_batch.paging import Order
from xalen_batch.results import content, results
from xalen_batch.results import merged as merged_results
from xalen_batch.results.content import Rendered
from xalen_batch.states import BatchStatus, OnInvalid
from xalen_batch.webhooks import endpoints

PATH = "/v1/batches"
# Batches of a list that are read and rendered at a time; the errors of each may take 300 KB.
PORTION = 10
router = APIRouter(prefix=PATH, tags=["batches"], route_class=keeping("requests"))
partial_router = APIRouter(prefix=PATH, tags=["extensions"])
MERGED = (
    "Every line that has ended, also without success, each with its last result among the batch and"
    " its retries."
)
MERGED_ERRORS = (
    "Every line whose last result among the batch and its retries is no success: what failed in all"
    " of them."
)
LINES = downloaded("Lines as JSON, one on each; headers say how many of the batch are done.")


@router.post("", response_model=BatchObject)
@calling(Scope.SUBMIT)
def create_batch(
    session: Session, caller: Caller, body: BatchRequest, key: IdempotencyKey = None
) -> Response:
    """Start a batch over an uploaded file, at the prices and the discount of this moment.

    Extension: `requests` in place of a file.
    """

    def create() -> bytes:
        if body.requests is None:
            return begin(body.input_file_id or "")
        with batch_requests.stored(session, caller, body.requests) as file_id:
            return begin(file_id)

    def begin(file_id: str) -> bytes:
        batch = batches.create(
            session,
            caller,
            input_file_id=file_id,
            endpoint=body.endpoint,
            completion_window=body.completion_window,
            metadata=body.metadata,
            output_expires_after=(
                None if body.output_expires_after is None else body.output_expires_after.seconds
            ),
            execution_window=body.execution_window,
            on_invalid=body.on_invalid or OnInvalid.FAIL,
        )
        if body.webhook is not None:
            endpoints.of_batch(session, batch, url=body.webhook.url, secret=body.webhook.secret)
        return shown(session, [batch])[0].model_dump_json().encode()

    fields = body.model_dump(exclude=_defaulted(body))
    said = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    fingerprint = hashlib.sha256(said + (body.requests or b"")).digest()
    return stored(
        idempotency.once(
            session, caller, key, route=f"POST {PATH}", fingerprint=fingerprint, create=create
        )
    )


@router.get("", response_model=ListObject[BatchObject], openapi_extra=METADATA)
@calling(Scope.READ)
def list_batches(
    session: Session,
    caller: Caller,
    filters: Annotated[Callable[[], BatchFilters], Depends(asked)],
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
) -> Response:
    """Batches, newest first unless `order` says otherwise. Each filter narrows the list."""
    wanted = filters()

    def page(session: Session, limit: int, after: str | None) -> ListObject[BatchObject]:
        found = lists.page(session, caller, wanted, limit=limit, order=order, after=after)
        return ListObject[BatchObject].of(shown(session, found.data), found.has_more)

    return listed(session, caller, page, limit=limit, after=after, portion=PORTION)


@router.get("/{batch_id}")
@calling(Scope.READ)
def retrieve_batch(session: Session, caller: Caller, batch_id: str) -> BatchObject:
    """A batch; while it is in progress, with an estimate of its end and its errors so far."""
    batch = batches.get(session, caller, batch_id)
    progress = batches.progress(session, [batch])[batch.id]
    return BatchObject.of(
        batch,
        progress,
        db.now(session) if batch.execution_window else None,
        waits.of_one(session, batch),
        outlook.of(session, batch, progress),
    )


@router.post("/{batch_id}/cancel")
@calling(Scope.SUBMIT)
def cancel_batch(session: Session, caller: Caller, batch_id: str) -> BatchObject:
    """Start no further line.

    Finished lines are kept, delivered and billed. Any body is ignored.
    """
    return shown(session, [batches.cancel(session, batches.get(session, caller, batch_id))])[0]


@partial_router.get("/{batch_id}/output", response_class=Response, responses=LINES)
def get_batch_output(
    request: Request,
    caller: BriefReader,
    batch_id: str,
    merged: Annotated[bool, Query(description=MERGED)] = False,
) -> Response:
    """The lines that succeeded so far, in the order of the input; headers say how far it goes."""
    if merged:
        return _merged_results(request, caller, batch_id, None)
    return results_so_far(request, caller, batch_id, FilePart.OUTPUT)


@partial_router.get("/{batch_id}/errors", response_class=Response, responses=LINES)
def get_batch_errors(
    request: Request,
    caller: BriefReader,
    batch_id: str,
    merged: Annotated[bool, Query(description=MERGED_ERRORS)] = False,
) -> Response:
    """The lines that failed so far, in the order of the input; headers say how far it goes."""
    if merged:
        return _merged_results(request, caller, batch_id, FilePart.ERROR)
    return results_so_far(request, caller, batch_id, FilePart.ERROR)


def _defaulted(body: BatchRequest) -> set[str]:
    """Fields to leave out of the fingerprint: `requests`, and those that have their default.

    Requests from before these fields existed keep the fingerprint that is stored with their key.
    """
    found = {"requests"} | ({"on_invalid"} if body.on_invalid in (None, OnInvalid.FAIL) else set())
    return found | ({"webhook"} if body.webhook is None else set())


def shown(session: Session, found: Sequence[Batch]) -> list[BatchObject]:
    progress = batches.progress(session, found)
    waiting = waits.of(session, found)
    # A round trip, which only batches with an execution window need.
    now = db.now(session) if any(batch.execution_window for batch in found) else None
    return [
        BatchObject.of(batch, progress[batch.id], now, waiting.get(batch.id)) for batch in found
    ]


def results_so_far(request: Request, caller: Caller, batch_id: str, part: FilePart) -> Response:
    """The lines of a batch that have succeeded or failed so far, as a download."""
    with db.transaction() as session:
        batch = batches.get(session, caller, batch_id)
        progress = batches.progress(session, [batch])[batch.id]
        file_id = batch.output_file_id if part == FilePart.OUTPUT else batch.error_file_id
        # Raises NotFound if the file was deleted or has expired: its lines are gone too.
        file = None if file_id is None else files.get(session, caller, ids.render("file", file_id))
    return download(
        request,
        _lines_so_far(batch, part) if file is None else content.of(file),
        f"{batch_id}_{part.value}.jsonl",
        _progress_headers(batch, progress),
    )


def _merged_results(
    request: Request, caller: Caller, batch_id: str, only: FilePart | None
) -> Response:
    with db.transaction() as session:
        found = merged_results.of(session, caller, batch_id, only)
        batch = batches.get(session, caller, batch_id)
        progress = batches.progress(session, [batch])[batch.id]
    is_complete = {"x-batch-complete": str(found.is_complete).lower()}
    return download(
        request,
        found.content,
        f"{batch_id}_merged{'_errors' if only is FilePart.ERROR else ''}.jsonl",
        _progress_headers(batch, progress) | is_complete,
    )


def _lines_so_far(batch: Batch, part: FilePart) -> Rendered:
    """The lines of a batch that runs, or none: a batch that has ended without a file has none."""
    is_ended = BatchStatus(batch.status).is_terminal
    return Rendered(partial(results.chunks, batch.id, part), 0 if is_ended else None)


def _progress_headers(batch: Batch, progress: Progress) -> dict[str, str]:
    return {
        "x-batch-complete": str(BatchStatus(batch.status).is_terminal).lower(),
        "x-batch-lines-done": str(progress.done),
        "x-batch-lines-total": str(progress.total),
    }

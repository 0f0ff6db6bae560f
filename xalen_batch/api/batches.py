"""/v1/batches, and as an extension the output and errors of a batch that still runs."""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from xalen_batch import batches, content, db, files, ids, results, waits
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api import idempotency
from xalen_batch.api.deps import BriefReader, IdempotencyKey, calling
from xalen_batch.api.description import downloaded
from xalen_batch.api.http.downloads import download
from xalen_batch.api.http.responses import listed, stored
from xalen_batch.api.schemas import BatchObject, BatchRequest, ListObject
from xalen_batch.batches import Progress
from xalen_batch.content import Rendered
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Batch
from xalen_batch.models.files import FilePart
from xalen_batch.states import BatchStatus, OnInvalid
from xalen_batch.webhooks import endpoints

PATH = "/v1/batches"
# Batches of a list that are read and rendered at a time; the errors of each may take 300 KB.
PORTION = 10
router = APIRouter(prefix=PATH, tags=["batches"])
partial_router = APIRouter(prefix=PATH, tags=["extensions"])
LINES = downloaded("Lines as JSON, one on each; headers say how many of the batch are done.")


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
        if body.webhook is not None:
            endpoints.of_batch(session, batch, url=body.webhook.url, secret=body.webhook.secret)
        return _shown(session, [batch])[0].model_dump_json().encode()

    fingerprint = hashlib.sha256(
        orjson.dumps(body.model_dump(exclude=_defaulted(body)), option=orjson.OPT_SORT_KEYS)
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

    Finished lines are kept, delivered and billed. Any body is ignored.
    """
    return _shown(session, [batches.cancel(session, batches.get(session, caller, batch_id))])[0]


@partial_router.get("/{batch_id}/output", response_class=Response, responses=LINES)
def get_batch_output(request: Request, caller: BriefReader, batch_id: str) -> Response:
    """The lines that succeeded so far, in the order of the input; headers say how far it goes."""
    return _partial_results(request, caller, batch_id, FilePart.OUTPUT)


@partial_router.get("/{batch_id}/errors", response_class=Response, responses=LINES)
def get_batch_errors(request: Request, caller: BriefReader, batch_id: str) -> Response:
    """The lines that failed so far, in the order of the input; headers say how far it goes."""
    return _partial_results(request, caller, batch_id, FilePart.ERROR)


def _defaulted(body: BatchRequest) -> set[str]:
    """Fields to leave out of the fingerprint, because they have their default.

    Requests from before these fields existed keep the fingerprint that is stored with their key.
    """
    found = {"on_invalid"} if body.on_invalid in (None, OnInvalid.FAIL) else set()
    return found | ({"webhook"} if body.webhook is None else set())


def _shown(session: Session, found: Sequence[Batch]) -> list[BatchObject]:
    progress = batches.progress(session, found)
    waiting = waits.of(session, found)
    # A round trip, which only batches with an execution window need.
    now = db.now(session) if any(batch.execution_window for batch in found) else None
    return [
        BatchObject.of(batch, progress[batch.id], now, waiting.get(batch.id)) for batch in found
    ]


def _partial_results(request: Request, caller: Caller, batch_id: str, part: FilePart) -> Response:
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

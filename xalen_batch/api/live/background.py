"""/v1/responses/{id}: Responses that run in the background."""

from typing import Any

import msgspec
from fastapi import APIRouter, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from xalen_batch import files, ids, storage
from xalen_batch.accounts.accounts import Caller, Owner, Scope
from xalen_batch.api.deps import calling
from xalen_batch.api.live import queued
from xalen_batch.batches import batches
from xalen_batch.endpoints import responses_chat
from xalen_batch.endpoints.names import RESPONSES
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest, NotFound
from xalen_batch.models import Batch, File
from xalen_batch.models.tasks import has_any
from xalen_batch.states import BatchStatus, TaskState

PATH = f"{RESPONSES}/{{response_id}}"
router = APIRouter(tags=["live calls"])

_STATUS = {
    BatchStatus.VALIDATING: "queued",
    BatchStatus.FINALIZING: "in_progress",
    BatchStatus.CANCELLING: "in_progress",
    BatchStatus.CANCELLED: "cancelled",
}


@router.get(PATH, response_model=None)
@calling(Scope.READ)
def retrieve_response(session: Session, caller: Caller, response_id: str) -> Response:
    """A Response that was asked for with `background` or `flex`, whether it has ended or not."""
    return queued.rendered(shown(session, _get(session, caller, response_id)))


@router.post(f"{PATH}/cancel", response_model=None)
@calling(Scope.SUBMIT)
def cancel_response(session: Session, caller: Caller, response_id: str) -> Response:
    """Stop a Response that runs in the background. Any body is ignored."""
    batch = _get(session, caller, response_id)
    if BatchStatus(batch.status).is_terminal:
        return queued.rendered(shown(session, batch))
    return queued.rendered(shown(session, batches.cancel(session, batch)))


@router.delete(PATH, response_model=None)
@calling(Scope.SUBMIT)
def delete_response(session: Session, caller: Caller, response_id: str) -> dict[str, Any]:
    """Delete a Response that has ended: its request and its answer. Its charge is kept."""
    batch = _get(session, caller, response_id)
    if not BatchStatus(batch.status).is_terminal:
        raise InvalidRequest(
            f"{response_id} has not ended. Cancel it first, then delete it.",
            code="response_not_ended",
        )
    for file_id in (batch.output_file_id, batch.error_file_id, batch.input_file_id):
        file = None if file_id is None else session.get(File, file_id)
        if file is not None and file.deleted_at is None:
            files.erase(session, file)
    return {"id": response_id, "object": "response", "deleted": True}


def _get(session: Session, owner: Owner, response_id: str) -> Batch:
    """The batch of a queued Response. Raises NotFound, also if it was deleted."""
    id = ids.parse("resp", response_id)
    batch = None
    if id is not None:
        batch = session.scalars(
            select(Batch)
            .join(File, File.id == Batch.input_file_id)
            .where(
                Batch.id == id,
                Batch.account_id == owner.account_id,
                Batch.livemode == owner.livemode,
                Batch.call.is_not(None),
                Batch.endpoint == RESPONSES,
                File.deleted_at.is_(None),
            )
        ).one_or_none()
    if batch is None:
        raise NotFound(
            f"No such Response object: {response_id[:QUOTED_CHARS]}. Only Responses that were asked"
            " for with `background` or `service_tier: flex` are kept.",
            param="response_id",
        )
    return batch


def shown(session: Session, batch: Batch) -> dict[str, Any]:
    """The Response of a batch, as far as it has come."""
    asked = msgspec.json.decode(b"".join(storage.chunks(storage.key(batch.input_file_id))))["body"]
    line = queued.line_of(session, batch)
    response = line and line["response"]
    if response and response["status_code"] < 300:
        return named(response["body"], batch)
    created = int(batch.created_at.timestamp())
    found = responses_chat.frame(asked, batch.id.hex, created, _status(session, batch), [])
    if found["status"] == "failed":
        error = queued.failure(batch)["error"]
        if line is not None:
            error = response["body"]["error"] if response else line["error"]
        found["error"] = {"code": error["code"] or "server_error", "message": error["message"]}
    return named(found, batch)


def named(response: dict[str, Any], batch: Batch) -> dict[str, Any]:
    """A Response under the id by which it can be asked for."""
    return {**response, "id": ids.render("resp", batch.id), "background": True}


def _status(session: Session, batch: Batch) -> str:
    status = BatchStatus(batch.status)
    if status is BatchStatus.IN_PROGRESS:
        return "in_progress" if has_any(session, batch.id, TaskState.RUNNING) else "queued"
    return _STATUS.get(status, "failed")

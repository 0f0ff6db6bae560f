"""/v1/uploads: files that arrive in parts."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field, StringConstraints
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from xalen_batch import db, disk, ids, log, storage, uploads
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api import idempotency, long_work, receive, scopes
from xalen_batch.api.deps import BriefSubmitter, IdempotencyKey, calling
from xalen_batch.api.http import budget
from xalen_batch.api.http.forms import UploadForm, clean
from xalen_batch.api.http.responses import JSON, stored
from xalen_batch.api.schemas import FileObject, Identified
from xalen_batch.api.scopes import Scoped
from xalen_batch.errors import InvalidRequest
from xalen_batch.fields import ExpiresAfter, Lenient, Text
from xalen_batch.models import File, Upload, UploadPart
from xalen_batch.ratelimit import account
from xalen_batch.states import UploadStatus
from xalen_batch.storage import marks

PATH = "/v1/uploads"
LONGEST_TYPE = 255
logger = log.get(__name__)
router = APIRouter(prefix=PATH, tags=["uploads"])

FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


class UploadRequest(Lenient):
    bytes: int = Field(description="The size of the file.")
    filename: Text
    mime_type: Annotated[Text, StringConstraints(max_length=LONGEST_TYPE)] = Field(
        description="Any; it is not checked."
    )
    purpose: Text = Field(description="`batch` for the input of a batch.")
    expires_after: ExpiresAfter | None = Field(
        None, description="The life of the file, from its own creation on."
    )


class CompleteRequest(Lenient):
    part_ids: list[Text] = Field(
        min_length=1, max_length=uploads.MOST_PARTS, description="In the order of the file."
    )
    md5: Text | None = Field(None, description="Of the whole file, in hex digits.")


class PartObject(Identified):
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
    bytes: int = Field(description="Extension.")
    sha256: str = Field(description="Extension: of its content, in hex digits.")

    @classmethod
    def of(cls, part: UploadPart) -> Self:
        return cls(
            id=ids.render("part", part.id),
            created_at=int(part.created_at.timestamp()),
            upload_id=ids.render("upload", part.upload_id),
            bytes=part.size,
            sha256=part.sha256.hex(),
        )


class UploadObject(Identified, Scoped):
    # All but the file's name, which the request does not have.
    always = frozenset(
        {"id", "object", "bytes", "created_at", "expires_at", "purpose", "status", "file"}
    )

    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: UploadStatus
    file: FileObject | None

    @classmethod
    def of(
        cls, upload: Upload, status: UploadStatus, file: File | None = None, **more: Any
    ) -> Self:
        return cls(
            id=ids.render("upload", upload.id),
            bytes=upload.size,
            created_at=int(upload.created_at.timestamp()),
            expires_at=int(upload.expires_at.timestamp()),
            filename=upload.filename,
            purpose=upload.purpose,
            status=status,
            file=None if file is None else FileObject.of(file),
            **more,
        )


class UploadWithParts(UploadObject):
    parts: list[PartObject] = Field(
        description=(
            "Extension: what is stored of a pending upload, in the order of arrival, to resume by."
        )
    )


@dataclass(frozen=True, slots=True)
class ReceivedPart:
    """A part whose bytes are in storage."""

    id: UUID
    caller: Caller
    size: int
    sha256: bytes


@router.post("", response_model=UploadObject)
@calling(Scope.SUBMIT)
def create_upload(
    session: Session, caller: Caller, body: UploadRequest, key: IdempotencyKey = None
) -> Response:
    """Begin a file of any size. It is pending for an hour, and counts in the quotas meanwhile."""
    purpose = receive.purpose(body.purpose)

    def create() -> bytes:
        upload = uploads.create(
            session,
            caller,
            size=body.bytes,
            purpose=purpose,
            filename=clean(body.filename),
            mime_type=body.mime_type,
            expires_after=None if body.expires_after is None else body.expires_after.seconds,
        )
        return UploadObject.of(upload, UploadStatus.PENDING).model_dump_json().encode()

    fingerprint = hashlib.sha256(orjson.dumps(body.model_dump(), option=orjson.OPT_SORT_KEYS))
    return stored(
        idempotency.once(
            session,
            caller,
            key,
            route=f"POST {PATH}",
            fingerprint=fingerprint.digest(),
            create=create,
        )
    )


@router.get("/{upload_id}")
@calling(Scope.READ)
def retrieve_upload(session: Session, caller: Caller, upload_id: str) -> UploadWithParts:
    """Extension: an upload and the parts that are stored, so that a client can resume it."""
    upload = uploads.get(session, caller, upload_id)
    return UploadWithParts.of(
        upload,
        uploads.status(session, upload),
        None if upload.file_id is None else session.get_one(File, upload.file_id),
        parts=[PartObject.of(part) for part in uploads.parts(session, upload)],
    )


async def receive_part(
    request: Request, caller: BriefSubmitter, upload_id: str
) -> AsyncIterator[ReceivedPart]:
    """A dependency: stores the part of an admitted caller, and removes it if the route fails."""
    least = max(0, receive.length(request) - receive.FORM_OVERHEAD)
    await asyncio.to_thread(_refuse_early, caller, upload_id, least)
    await asyncio.to_thread(marks.place)
    id = ids.new()
    form = UploadForm(uploads.MOST_PART_BYTES, name="data", over=_part_too_large)
    with budget.bodies.holding(caller, receive.UPLOAD_BYTES):
        part = await receive.stream(
            request,
            form,
            storage.part_key(id),
            lambda sha256: ReceivedPart(id, caller, form.size, sha256),
        )
    try:
        await asyncio.to_thread(marks.confirm_kept, storage.part_key(id))
        yield part
    except OperationalError:
        # The commit may have succeeded. If not, the sweep removes the bytes.
        raise
    except Exception:
        await asyncio.to_thread(storage.delete, storage.part_key(id))
        raise


@router.post("/{upload_id}/parts", openapi_extra=FORM)
def create_part(
    part: Annotated[ReceivedPart, Depends(receive_part, scope="function")], upload_id: str
) -> PartObject:
    """Add a part, of at most 64 MiB. Parts may be sent in any order, and several at a time."""
    with db.transaction() as session:
        row = uploads.add_part(
            session, part.caller, upload_id, id=part.id, size=part.size, sha256=part.sha256
        )
        return PartObject.of(row)


@router.post("/{upload_id}/complete", response_model=UploadObject)
def complete_upload(caller: BriefSubmitter, upload_id: str, body: CompleteRequest) -> Response:
    """Join the parts to a file. Sent again with the same ids, it has the same answer."""
    with long_work.admitted(caller):
        with db.reading() as session:
            account.admit_change(session, caller)
        upload, file = uploads.complete(caller, upload_id, body.part_ids, body.md5)
    _clear(upload)
    return _shown(UploadObject.of(upload, UploadStatus.COMPLETED, file), caller)


@router.post("/{upload_id}/cancel", response_model=UploadObject)
def cancel_upload(caller: BriefSubmitter, upload_id: str) -> Response:
    """Delete the parts. Any body is ignored."""
    with db.transaction() as session:
        account.admit_change(session, caller)
        upload = uploads.cancel(session, caller, upload_id)
    _clear(upload)
    return _shown(UploadObject.of(upload, UploadStatus.CANCELLED), caller)


def _shown(upload: UploadObject, caller: Caller) -> Response:
    return Response(scopes.render(upload, caller.scopes), media_type=JSON)


def _clear(upload: Upload) -> None:
    """Delete the parts of an upload that has just ended. What fails is left to the sweep."""
    if upload.is_cleared:
        return
    try:
        uploads.clear(upload.id)
    except (*storage.UNAVAILABLE, *db.UNAVAILABLE) as error:
        logger.warning("upload.not_cleared", upload_id=upload.id, error=type(error).__name__)


def _refuse_early(caller: Caller, upload_id: str, least: int) -> None:
    """Raise the error of a part before its bytes are read: by the rate of changes, or its upload.

    `least`: a lower bound of its bytes.
    """
    disk.refuse_if_full()
    with db.reading() as session:
        account.admit_change(session, caller)
        uploads.refuse_part(session, caller, upload_id, least=least)


def _part_too_large(most: int) -> InvalidRequest:
    return InvalidRequest(
        f"The part is larger than {most:,} bytes. Send the file in smaller parts.",
        param="data",
        code="part_too_large",
    )

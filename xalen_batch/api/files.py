"""/v1/files"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from xalen_batch import files, storage
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api import idempotency
from xalen_batch.api.deps import BriefReader, IdempotencyKey, calling
from xalen_batch.api.description import downloaded
from xalen_batch.api.http.downloads import download
from xalen_batch.api.http.responses import listed, stored
from xalen_batch.api.receive import Received
from xalen_batch.api.schemas import DeletedFile, FileObject, ListObject
from xalen_batch.db import transaction
from xalen_batch.endpoints.form import MOST_INT
from xalen_batch.fields import LONGEST_LIFE, SHORTEST_LIFE
from xalen_batch.files import UPLOAD_PURPOSES, Purpose
from xalen_batch.paging import Order
from xalen_batch.results import content

PATH = "/v1/files"
# Files of a list that are read and rendered at a time; each takes about 1 KB.
PORTION = 500
router = APIRouter(prefix=PATH, tags=["files"])

Offset = Annotated[
    int | None,
    Query(
        ge=0,
        le=MOST_INT,
        description=(
            "Extension: leave out so many lines. The headers `x-incomplete` (`false`, as a file is"
            " never a part) and, of an output or error file, `x-last-line` (its lines) are set."
        ),
    ),
]

FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "purpose": {
                            "type": "string",
                            "enum": sorted(UPLOAD_PURPOSES),
                            "description": "`batch` for the input of a batch.",
                        },
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": SHORTEST_LIFE,
                            "maximum": LONGEST_LIFE,
                        },
                        "file": {"type": "string", "format": "binary"},
                    },
                }
            }
        },
    }
}


@router.post("", response_model=FileObject, openapi_extra=FORM)
def create_file(upload: Received, key: IdempotencyKey = None) -> Response:
    """Upload a file. Fields may come before or after it; it is stored as it arrives."""

    with transaction() as session:

        def create() -> bytes:
            file = files.create(
                session,
                upload.caller,
                id=upload.id,
                purpose=upload.purpose,
                filename=upload.filename,
                size=upload.size,
                sha256=upload.sha256,
                expires_after=upload.expires_after,
            )
            return FileObject.of(file).model_dump_json().encode()

        answer = idempotency.once(
            session,
            upload.caller,
            key,
            route=f"POST {PATH}",
            fingerprint=upload.fingerprint,
            create=create,
        )
    if answer.is_replay:
        # The file has the bytes of the first upload.
        storage.delete(storage.key(upload.id))
    return stored(answer)


@router.get("", response_model=ListObject[FileObject])
@calling(Scope.READ)
def list_files(
    session: Session,
    caller: Caller,
    purpose: Purpose | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
) -> Response:
    """Files, newest first unless `order` says otherwise."""

    def page(session: Session, limit: int, after: str | None) -> ListObject[FileObject]:
        found = files.page(session, caller, purpose=purpose, limit=limit, order=order, after=after)
        return ListObject[FileObject].of(
            [FileObject.of(file) for file in found.data], found.has_more
        )

    return listed(session, caller, page, limit=limit, after=after, portion=PORTION)


@router.get("/{file_id}")
@calling(Scope.READ)
def retrieve_file(session: Session, caller: Caller, file_id: str) -> FileObject:
    return FileObject.of(files.get(session, caller, file_id))


@router.get(
    "/{file_id}/content", response_class=Response, responses=downloaded("The bytes of the file.")
)
def download_file(
    request: Request, caller: BriefReader, file_id: str, offset: Offset = None
) -> Response:
    """The bytes of an upload, or the lines of an output or error file in the order of the input."""
    with transaction() as session:
        file = files.get(session, caller, file_id)
        files.refuse_if_not_ready(session, file, param="file_id")
        headers = {} if offset is None else _progress(files.lines(session, file))
    found = content.of(file)
    if offset is not None:
        found = content.behind(found, offset)
    return download(request, found, file.filename, headers)


@router.delete("/{file_id}")
@calling(Scope.SUBMIT)
def delete_file(session: Session, caller: Caller, file_id: str) -> DeletedFile:
    """Delete a file. For an output file, this erases the answers, but not their charges."""
    files.delete(session, caller, file_id)
    return DeletedFile(id=file_id)


def _progress(lines: int | None) -> dict[str, str]:
    """The headers of a download with an offset, in the spelling of autobatcher."""
    last = {} if lines is None else {"x-last-line": str(lines)}
    return {"x-incomplete": "false", **last}

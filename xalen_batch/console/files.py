"""Files: what is stored, how long, and their contents."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from xalen_batch import db, files
from xalen_batch.accounts.accounts import Scope
from xalen_batch.accounts.sessions import Visitor
from xalen_batch.api.http.downloads import download
from xalen_batch.api.schemas import FileObject
from xalen_batch.console import routes, views
from xalen_batch.console.routes import PATH, PageRoute
from xalen_batch.errors import InvalidRequest
from xalen_batch.files import Purpose
from xalen_batch.results import content

router = APIRouter(prefix=f"{PATH}/files", route_class=PageRoute, include_in_schema=False)
ON_PAGE = 25
PURPOSES = {Purpose.BATCH: "inputs", Purpose.BATCH_OUTPUT: "outputs and errors"}


@router.get("")
@routes.page()
def list_files(
    request: Request,
    session: Session,
    visitor: Visitor,
    purpose: Annotated[str, Query(max_length=50)] = "",
    after: Annotated[str | None, Query(max_length=100)] = None,
) -> Response:
    """Files, the newest first."""
    if purpose and purpose not in list(PURPOSES):
        raise InvalidRequest(f"purpose: choose one of {', '.join(PURPOSES)}.", param="purpose")
    found = files.page(
        session, visitor.caller, purpose=purpose or None, limit=ON_PAGE, order="desc", after=after
    )
    shown = [FileObject.of(file) for file in found.data]
    older = None
    if found.has_more:
        query = {"after": shown[-1].id} | ({"purpose": purpose} if purpose else {})
        older = f"{PATH}/files?{urlencode(query)}"
    return views.show(
        request,
        visitor,
        "files.html",
        files=shown,
        older=older,
        purpose=purpose,
        purposes=PURPOSES,
    )


@router.get("/{file_id}")
@routes.page()
def show_file(request: Request, session: Session, visitor: Visitor, file_id: str) -> Response:
    """One file."""
    file = files.get(session, visitor.caller, file_id)
    return views.show(
        request,
        visitor,
        "file.html",
        file=FileObject.of(file),
        is_ready=files.is_ready(file),
        sha256=None if file.sha256 is None else file.sha256.hex(),
    )


@router.get("/{file_id}/content")
@routes.brief()
def download_file(request: Request, visitor: Visitor, file_id: str) -> Response:
    """The bytes of an upload, or the lines of an output or error file."""
    with db.transaction() as session:
        file = files.get(session, visitor.caller, file_id)
        files.refuse_if_not_ready(session, file, param="file_id")
    return download(request, content.of(file), file.filename)


@router.get("/{file_id}/delete")
@routes.page(Scope.SUBMIT)
def confirm_delete(request: Request, session: Session, visitor: Visitor, file_id: str) -> Response:
    """The effect of a deletion, and the form for it."""
    file = files.get(session, visitor.caller, file_id)
    return views.show(
        request,
        visitor,
        "confirm.html",
        title=f"Delete {file.filename}",
        effect=(
            "Its bytes are erased; of an output file, the answers. Charges and invoices stay. This"
            " cannot be undone."
        ),
        names=[],
        action=f"{PATH}/files/{file_id}/delete",
        fields=[],
        verb="Delete this file",
        is_final=True,
        back=f"{PATH}/files/{file_id}",
    )


@router.post("/{file_id}/delete")
@routes.change()
def delete(request: Request, session: Session, visitor: Visitor, file_id: str) -> Response:
    """Erase a file that nothing reads."""
    files.delete(session, visitor.caller, file_id)
    return routes.to(f"{PATH}/files")

"""The page of a new batch: an upload, every error of its lines, its estimate, and its terms."""

import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from xalen_batch import db, files, ids
from xalen_batch.accounts import audit
from xalen_batch.accounts.accounts import Scope
from xalen_batch.accounts.sessions import Visitor
from xalen_batch.api import deps, estimates, idempotency
from xalen_batch.api.receive import ReceivedFile, receive
from xalen_batch.batches import batches
from xalen_batch.console import routes, views
from xalen_batch.console.routes import PATH, PageRoute
from xalen_batch.console.samples import samples
from xalen_batch.endpoints.names import ENDPOINTS, endpoint_of
from xalen_batch.errors import InvalidRequest, NotFound, XalenError
from xalen_batch.fields import Metadata
from xalen_batch.ratelimit import account
from xalen_batch.states import OnInvalid
from xalen_batch.windows import WEEK, ExecutionWindow

router = APIRouter(prefix=f"{PATH}/batches", route_class=PageRoute, include_in_schema=False)
NEW = f"{PATH}/batches/new"
WINDOWS = ("1h", "6h", "12h", "24h", "2d", "3d", "7d")
# Errors of lines that the page lists; the API lists more.
ERRORS_SHOWN = 100
DEFAULTS: dict[str, Any] = {
    "completion_window": "24h",
    "start": "",
    "end": "",
    "timezone": "UTC",
    "days": list(WEEK),
    "metadata": "",
    "skip": False,
}
Short = Annotated[str, Form(max_length=100)]
_metadata = TypeAdapter(Metadata).validate_python
_receiving = asynccontextmanager(receive)


async def _received(
    request: Request, csrf: Annotated[str, Query(max_length=200)] = ""
) -> AsyncIterator[ReceivedFile]:
    """A dependency: the stored upload of a form, whose token is checked before a byte is read."""
    visitor = await run_in_threadpool(_admitted, request, csrf)
    async with _receiving(request, visitor.caller) as upload:
        yield upload


def _admitted(request: Request, csrf: str) -> Visitor:
    visitor = routes.visit_briefly(request, Scope.SUBMIT)
    routes.check_csrf(visitor, csrf)
    return visitor


@router.post("/new/file")
def upload_file(
    upload: Annotated[ReceivedFile, Depends(_received, scope="function")],
    replaces: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """Store the file, in place of an earlier one that was faulty, and lead to its check."""
    with db.transaction() as session:
        audit.sign(session, upload.caller.actor)
        file = files.create(
            session,
            upload.caller,
            id=upload.id,
            purpose=upload.purpose,
            filename=upload.filename,
            size=upload.size,
            sha256=upload.sha256,
        )
        if replaces:
            # Unless it is gone already, or a batch reads it.
            with suppress(NotFound, InvalidRequest):
                files.delete(session, upload.caller, replaces)
    return routes.to(f"{NEW}?{urlencode({'file_id': ids.render('file', file.id)})}")


@router.get("/new")
@routes.brief(Scope.SUBMIT)
def new_batch(
    request: Request,
    visitor: Visitor,
    file_id: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """The form for a file; with one, its errors or its estimate, and the terms of the batch."""
    if not file_id:
        return views.show(request, visitor, "new_batch.html", file=None, endpoints=ENDPOINTS)
    return _checked(request, visitor, file_id, DEFAULTS)


def _checked(
    request: Request,
    visitor: Visitor,
    file_id: str,
    terms: Mapping[str, Any],
    problem: XalenError | None = None,
) -> Response:
    with db.reading() as session:
        file = files.get(session, visitor.caller, file_id)
    found = estimates.estimate(visitor.caller, file_id, None).render()
    are_of_lines = found["error_count"] > 0 and all(
        error["line"] is not None for error in found["errors"]["data"]
    )
    return views.show(
        request,
        visitor,
        "new_batch.html",
        status=200 if problem is None else problem.status,
        file=file,
        file_id=file_id,
        found=found,
        shown_errors=found["errors"]["data"][:ERRORS_SHOWN],
        may_skip=are_of_lines and found["lines"] > 0,
        terms=terms,
        windows=WINDOWS,
        week=WEEK,
        problem=problem,
        nonce=secrets.token_hex(16),
        samples=samples(request, file, found["endpoint"] or "/v1/chat/completions"),
    )


@router.post("/new")
def create_batch(
    request: Request,
    csrf: routes.Token = "",
    nonce: Short = "",
    file_id: Short = "",
    endpoint: Short = "",
    completion_window: Short = "24h",
    start: Short = "",
    end: Short = "",
    timezone: Short = "UTC",
    days: Annotated[list[str], Form(max_length=7)] = [],  # noqa: B006
    metadata: Annotated[str, Form(max_length=20_000)] = "",
    skip: Short = "",
) -> Response:
    """Create the batch, once for each `nonce`; an error leads back to the form as it was filled in.

    No transaction is open while the file is read again for that.
    """
    visitor = routes.visit_briefly(request, Scope.SUBMIT)
    routes.check_csrf(visitor, csrf)
    terms = {
        "completion_window": completion_window,
        "start": start,
        "end": end,
        "timezone": timezone,
        "days": days,
        "metadata": metadata,
        "skip": bool(skip),
    }
    try:
        with db.transaction() as session:
            audit.sign(session, visitor.caller.actor)
            account.admit_change(session, visitor.caller)
            batch_id = _create(session, visitor, nonce, file_id, endpoint, terms)
    except InvalidRequest as error:
        if error.param == "input_file_id":
            raise
        return _checked(request, visitor, file_id, terms, error)
    return routes.to(f"{PATH}/batches/{batch_id}")


deps.admitting(create_batch, partial(routes.visit_briefly, scope=Scope.SUBMIT))


def _create(
    session: Session,
    visitor: Visitor,
    nonce: str,
    file_id: str,
    endpoint: str,
    terms: Mapping[str, Any],
) -> str:
    """The public id of the batch. A form that is sent twice makes one batch."""

    def create() -> bytes:
        batch = batches.create(
            session,
            visitor.caller,
            input_file_id=file_id,
            endpoint=_endpoint(endpoint),
            completion_window=terms["completion_window"],
            metadata=_pairs(terms["metadata"]),
            execution_window=_window(terms),
            on_invalid=OnInvalid.SKIP if terms["skip"] else OnInvalid.FAIL,
        )
        return ids.render("batch", batch.id).encode()

    said = repr((nonce, file_id, endpoint, sorted(terms.items()))).encode()
    fingerprint = hashlib.sha256(said).digest()
    # A form that was changed since is another request.
    key = f"console-{fingerprint.hex()}" if nonce else None
    answer = idempotency.once(
        session, visitor.caller, key, route=f"POST {NEW}", fingerprint=fingerprint, create=create
    )
    return answer.body.decode()


def _endpoint(sent: str) -> Any:
    found = endpoint_of(sent)
    if found is None:
        raise InvalidRequest(f"endpoint: choose one of {', '.join(ENDPOINTS)}.", param="endpoint")
    return found


def _pairs(text: str) -> dict[str, str] | None:
    """Metadata of lines `key=value`. Raises InvalidRequest, which names the line."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key:
            raise InvalidRequest(
                f"Line {number} of the metadata is not `key=value`, such as `team=search`.",
                param="metadata",
            )
        if key in found:
            raise InvalidRequest(
                f"Line {number} of the metadata repeats the key {key[:60]!r}. Write each once.",
                param="metadata",
            )
        found[key] = value
    try:
        return _metadata(found) if found else None
    except ValidationError as error:
        raise InvalidRequest(
            f"metadata: {error.errors()[0]['msg']}. It has at most 16 keys of 64 characters, and"
            " values of 512.",
            param="metadata",
        ) from None


def _window(terms: Mapping[str, Any]) -> ExecutionWindow | None:
    if not terms["start"] and not terms["end"]:
        return None
    try:
        return ExecutionWindow.model_validate(
            {name: terms[name] for name in ("start", "end", "timezone", "days")}
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "start"
        said = str(first["msg"]).removeprefix("Value error, ")
        raise InvalidRequest(f"{field}: {said}", param=field) from None

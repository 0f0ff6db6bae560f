"""Receives the file of a multipart body: streams it to storage, without a temporary copy."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar
from uuid import UUID

import python_multipart
import sqlalchemy.exc
from fastapi import Depends, Request
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from xalen_batch import db, disk, ids, storage
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Caller
from xalen_batch.accounts.quotas import Quota
from xalen_batch.api.deps import BriefSubmitter
from xalen_batch.api.http import budget
from xalen_batch.api.http.forms import UploadForm
from xalen_batch.config import settings
from xalen_batch.errors import InvalidRequest, TooLarge
from xalen_batch.fields import LONGEST_LIFE, SHORTEST_LIFE, ExpiresAfter, meant, misspelt
from xalen_batch.files import UPLOAD_PURPOSES
from xalen_batch.ratelimit import account
from xalen_batch.storage import marks

Stored = TypeVar("Stored")

# The most bytes of a form besides those of the file: part headers and other fields.
FORM_OVERHEAD = 1024 * 1024
FORM_FIELDS = frozenset(
    {"file", "purpose", "expires_after", "expires_after[anchor]", "expires_after[seconds]"}
)
# The bytes that an arriving upload holds in memory: the buffers of its writer and its connection.
UPLOAD_BYTES = storage.WRITE_BUFFER + 512 * 1024


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A file whose bytes are in storage, with its form's fields. `expires_after`: seconds."""

    id: UUID
    caller: Caller
    purpose: str
    filename: str
    size: int
    sha256: bytes
    expires_after: int | None

    @property
    def fingerprint(self) -> bytes:
        said = repr((self.purpose, self.filename, self.expires_after)).encode()
        return hashlib.sha256(said + self.sha256).digest()


async def receive(request: Request, caller: BriefSubmitter) -> AsyncIterator[ReceivedFile]:
    """A dependency: stores the upload of an admitted caller, and removes it if the route fails."""
    await asyncio.to_thread(_refuse_if_over_quota, caller, max(0, length(request) - FORM_OVERHEAD))
    await asyncio.to_thread(marks.place)
    with budget.bodies.holding(caller, UPLOAD_BYTES):
        upload = await _store(request, caller)
    try:
        await asyncio.to_thread(marks.confirm_kept, storage.key(upload.id))
        yield upload
    except sqlalchemy.exc.OperationalError:
        # The commit may have succeeded. If not, the sweep removes the bytes.
        raise
    except Exception:
        await asyncio.to_thread(storage.delete, storage.key(upload.id))
        raise


Received = Annotated[ReceivedFile, Depends(receive, scope="function")]


async def _store(request: Request, caller: Caller) -> ReceivedFile:
    id = ids.new()
    form = UploadForm(settings().max_file_bytes)
    return await stream(
        request, form, storage.key(id), lambda sha256: _file(id, caller, form, sha256)
    )


async def stream(
    request: Request, form: UploadForm, key: str, accept: Callable[[bytes], Stored]
) -> Stored:
    """Store the file of a form as an object as it arrives; what `accept` makes of its SHA-256.

    An error leaves no object, also one that `accept` raises for the fields of the form.
    """
    parser = python_multipart.MultipartParser(_boundary(request, form.name), form.callbacks())
    if length(request) > form.most + FORM_OVERHEAD:
        raise form.over()
    received = 0
    digest = hashlib.sha256()
    # An error within the writer's context removes the bytes.
    async with storage.writer(key) as out:
        async for chunk in request.stream():
            disk.refuse_if_full()
            received += len(chunk)
            try:
                parser.write(chunk)
            except FormParserError as error:
                raise InvalidRequest(
                    f"The multipart body is broken: {error}. Let your HTTP client build it."
                ) from error
            if received - form.size > FORM_OVERHEAD:
                raise TooLarge(
                    f"The form around the file takes more than {FORM_OVERHEAD:,} bytes. Send the"
                    f" file's content as the part `{form.name}`.",
                    code="request_too_large",
                )
            for data in form.take():
                digest.update(data)
                await out.write(data)
        _refuse_if_incomplete(form)
        return accept(digest.digest())


def _boundary(request: Request, name: str) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary or len(boundary) > 256:
        raise InvalidRequest(f"Send the bytes as multipart/form-data, in the field `{name}`.")
    return boundary


def length(request: Request) -> int:
    """The body's Content-Length in bytes; 0 if there is none."""
    stated = request.headers.get("content-length", "0")
    return int(stated) if stated.isdecimal() else 0


def _refuse_if_over_quota(caller: Caller, least: int) -> None:
    """Raise TooManyRequests before a byte is read: by the rate of changes, or by a quota.

    `least`: a lower bound of the file's bytes.
    """
    asked = {Quota.FILES: 1}
    if least:
        asked[Quota.STORAGE_BYTES] = least
    with db.reading() as session:
        account.admit_change(session, caller)
        excess = quotas.excess(session, caller, asked)
    if excess:
        raise excess.refusal()


def _refuse_if_incomplete(form: UploadForm) -> None:
    if not form.is_complete:
        raise InvalidRequest(
            "The multipart body ends before its closing boundary. Upload the file again."
        )
    if form.filename is None:
        raise InvalidRequest(
            f"Missing required parameter: `{form.name}`. Send the file as a part of that name.",
            param=form.name,
        )
    if not form.size:
        # The name of a part of an upload is `data`.
        is_file = form.name == "file"
        remedy = "Send one JSON object on each line." if is_file else "Send the file's next bytes."
        raise InvalidRequest(
            f"`{form.name}` is empty. {remedy}",
            param=form.name,
            code="empty_file",
        )


def _file(id: UUID, caller: Caller, form: UploadForm, sha256: bytes) -> ReceivedFile:
    return ReceivedFile(
        id,
        caller,
        purpose(form.fields.get("purpose")),
        form.filename or "",
        form.size,
        sha256,
        _expires_after(form),
    )


def purpose(sent: str | None) -> str:
    """The purpose of a file that a client uploads, as it was sent. Raises InvalidRequest."""
    choices = ", ".join(sorted(UPLOAD_PURPOSES))
    if not sent:
        raise InvalidRequest(
            "Missing required parameter: `purpose`. Send `batch` for the input of a batch.",
            param="purpose",
        )
    if sent not in UPLOAD_PURPOSES:
        raise InvalidRequest(
            f"Invalid `purpose`: {sent[:100]!r}. Send `batch` for the input of a batch;"
            f" {choices} are accepted.",
            param="purpose",
        )
    return sent


def _expires_after(form: UploadForm) -> int | None:
    """The seconds of the form's two fields, or of one field with a JSON object.

    Some clients send the latter. None without any of these fields.
    """
    for name in form.fields.keys() - FORM_FIELDS:
        if field := meant(name, FORM_FIELDS):
            raise misspelt(name, field)
    if text := form.fields.get("expires_after"):
        if form.fields.keys() & {"expires_after[anchor]", "expires_after[seconds]"}:
            raise InvalidRequest(
                "The form says twice when the file expires. Send `expires_after` once.",
                param="expires_after",
            )
        try:
            return ExpiresAfter.model_validate_json(text).seconds
        except ValidationError:
            wanted = (
                f'{{"anchor": "created_at", "seconds": {SHORTEST_LIFE}}}, or the fields'
                " `expires_after[anchor]` and `expires_after[seconds]`"
            )
            raise InvalidRequest(
                f"Invalid `expires_after`: {text!r:.100}. Send {wanted}.", param="expires_after"
            ) from None
    anchor = form.fields.get("expires_after[anchor]", "")
    seconds = form.fields.get("expires_after[seconds]", "")
    if not anchor and not seconds:
        return None
    if anchor != "created_at":
        raise InvalidRequest(
            f"Invalid `expires_after[anchor]`: {anchor!r:.100}. Send `created_at`.",
            param="expires_after[anchor]",
        )
    if not re.fullmatch("[0-9]{1,9}", seconds) or not SHORTEST_LIFE <= int(seconds) <= LONGEST_LIFE:
        raise InvalidRequest(
            f"Invalid `expires_after[seconds]`: {seconds!r:.100}. Send a whole number from"
            f" {SHORTEST_LIFE} to {LONGEST_LIFE}.",
            param="expires_after[seconds]",
        )
    return int(seconds)

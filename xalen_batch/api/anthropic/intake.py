"""A message batch as it arrives: its document is spooled, then becomes a batch's input file."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated
from uuid import UUID

import sqlalchemy.exc
from fastapi import Depends, Request

from xalen_batch import db, disk, ids, storage
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Caller
from xalen_batch.accounts.quotas import Quota
from xalen_batch.api import long_work
from xalen_batch.api.anthropic.document import Written, convert
from xalen_batch.api.anthropic.elements import REMEDY
from xalen_batch.api.deps import BriefSubmitter
from xalen_batch.api.http import budget
from xalen_batch.api.receive import UPLOAD_BYTES
from xalen_batch.config import settings
from xalen_batch.errors import InvalidRequest, TooLarge, Unavailable, XalenError
from xalen_batch.ratelimit import account
from xalen_batch.storage import marks
from xalen_batch.validation import apart


@dataclass(frozen=True, slots=True)
class Intake:
    """An input file that is stored, of a document with this fingerprint."""

    id: UUID
    caller: Caller
    written: Written
    fingerprint: bytes


async def receive(request: Request, caller: BriefSubmitter) -> AsyncIterator[Intake]:
    """A dependency: stores an admitted caller's input file, and removes it if the route fails."""
    await asyncio.to_thread(_refuse_if_over_quota, caller, request.headers.get("content-length"))
    await asyncio.to_thread(marks.place)
    # The object of the document has no row: the sweep removes it if this process dies before.
    document, target = storage.key(ids.new()), ids.new()
    try:
        with budget.bodies.holding(caller, UPLOAD_BYTES):
            size, fingerprint = await _spool(request, document)
        written = await asyncio.to_thread(_convert, caller, document, storage.key(target), size)
    finally:
        with suppress(*storage.UNAVAILABLE):
            await asyncio.to_thread(storage.delete, document)
    try:
        await asyncio.to_thread(marks.confirm_kept, storage.key(target))
        yield Intake(target, caller, written, fingerprint)
    except sqlalchemy.exc.OperationalError:
        # The commit may have succeeded. If not, the sweep removes the bytes.
        raise
    except Exception:
        await asyncio.to_thread(storage.delete, storage.key(target))
        raise


Received = Annotated[Intake, Depends(receive, scope="function")]


async def _spool(request: Request, key: str) -> tuple[int, bytes]:
    """Store the document as it arrives; returns its bytes and its digest."""
    size, digest, most = 0, hashlib.sha256(), settings().max_file_bytes
    # An error within the writer's context removes the bytes.
    async with storage.writer(key) as out:
        async for chunk in request.stream():
            disk.refuse_if_full()
            size += len(chunk)
            if size > most:
                raise _too_large(most)
            digest.update(chunk)
            await out.write(chunk)
        if not size:
            raise InvalidRequest(f"The body is empty. {REMEDY}", code="invalid_json")
    return size, digest.digest()


def _convert(caller: Caller, document: str, target: str, size: int) -> Written:
    """Write the input file, in a process of its own if the document is large."""
    with long_work.admitted(caller) if size > apart.SMALL_BYTES else nullcontext():
        try:
            found = apart.run(partial(convert, document, target), size=size)
        except Unavailable:
            # Clients repeat a 503, and the same document would take as long again.
            raise TooLarge(
                f"Reading the request took more than {apart.WORK_TIMEOUT:g} s. Split it into"
                " several batches.",
                code="request_too_large",
            ) from None
    if isinstance(found, XalenError):
        raise found
    return found


def _refuse_if_over_quota(caller: Caller, length: str | None) -> None:
    """Raise TooManyRequests or TooLarge before a byte is read.

    `length`: the Content-Length of the document, which is about as large as the file.
    """
    size = int(length) if length is not None and length.isdecimal() else 0
    if size > settings().max_file_bytes:
        raise _too_large(settings().max_file_bytes)
    with db.reading() as session:
        account.admit_change(session, caller)
        excess = quotas.excess(session, caller, {Quota.FILES: 1})
    if excess:
        raise excess.refusal()


def _too_large(most: int) -> TooLarge:
    return TooLarge(
        f"The request has more than {most:,} bytes. Split it into several batches.",
        code="request_too_large",
    )

"""Uploads of a batch's input: whole, or in parts if it is large."""

import asyncio
import hashlib
from collections.abc import Iterable

from openai import AsyncOpenAI, BaseModel, NotFoundError, OpenAI, OpenAIError, PermissionDeniedError
from openai.types import Upload

from xalen._options import path
from xalen.batch.options import idempotency
from xalen.batch.source import Source

# A file of more bytes is uploaded in parts of this size.
PART = 32 * 1024 * 1024
MIME_TYPE = "application/jsonl"
# Seconds for which the server may join the parts.
LONGEST_JOIN = 1_800.0
ONE = "/uploads/{upload_id}"


class Part(BaseModel):
    id: str
    bytes: int
    sha256: str


class UploadWithParts(Upload):
    """An upload as this API's GET shows it, with its parts in the order of their arrival."""

    parts: list[Part]


class Stored:
    """The parts that the server has, each of which is used once."""

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self._parts = list(parts)

    def take(self, content: bytes) -> str | None:
        """The id of a part with this content, or None."""
        if not self._parts:
            return None
        key = (len(content), hashlib.sha256(content).hexdigest())
        for part in self._parts:
            if (part.bytes, part.sha256) == key:
                self._parts.remove(part)
                return part.id
        return None


def send(client: OpenAI, source: Source, key: str | None) -> str:
    """Upload a batch's input; the file's id. `key`: the caller's, by which an upload is found."""
    if source.size > PART:
        try:
            return _in_parts(client, source, key)
        except NotFoundError:
            # A server without uploads in parts.
            pass
    return client.files.create(
        file=(source.name, source.file), purpose="batch", extra_headers=idempotency(key, "file")
    ).id


def _in_parts(client: OpenAI, source: Source, key: str | None) -> str:
    upload, stored = _create(client, source, key), Stored()
    if key is not None and (known := _known(client, upload.id)):
        if known.file is not None:
            return known.file.id
        if known.status == "pending":
            stored = Stored(known.parts)
        else:
            # The key's upload has expired or was cancelled.
            upload = _create(client, source, None)
    ids = []
    for first in range(0, source.size, PART):
        content = source.piece(first, PART)
        ids.append(
            stored.take(content)
            or client.uploads.parts.create(upload.id, data=("part", content)).id
        )
    return _file_id(client.uploads.complete(upload.id, part_ids=ids, timeout=LONGEST_JOIN))


def _create(client: OpenAI, source: Source, key: str | None) -> Upload:
    return client.uploads.create(
        bytes=source.size,
        filename=source.name,
        mime_type=MIME_TYPE,
        purpose="batch",
        extra_headers=idempotency(key, "upload"),
    )


def _known(client: OpenAI, upload_id: str) -> UploadWithParts | None:
    """The upload as it is now; None for a key without the scope `read`."""
    try:
        return client.get(path(ONE, upload_id=upload_id), cast_to=UploadWithParts)
    except PermissionDeniedError:
        return None


async def async_send(client: AsyncOpenAI, source: Source, key: str | None) -> str:
    """As `send`."""
    if source.size > PART:
        try:
            return await _async_in_parts(client, source, key)
        except NotFoundError:
            # A server without uploads in parts.
            pass
    file = await client.files.create(
        file=(source.name, source.file), purpose="batch", extra_headers=idempotency(key, "file")
    )
    return file.id


async def _async_in_parts(client: AsyncOpenAI, source: Source, key: str | None) -> str:
    upload, stored = await _async_create(client, source, key), Stored()
    if key is not None and (known := await _async_known(client, upload.id)):
        if known.file is not None:
            return known.file.id
        if known.status == "pending":
            stored = Stored(known.parts)
        else:
            # The key's upload has expired or was cancelled.
            upload = await _async_create(client, source, None)
    ids = []
    for first in range(0, source.size, PART):
        # The event loop has no time for the disk.
        content = await asyncio.to_thread(source.piece, first, PART)
        id = await asyncio.to_thread(stored.take, content)
        if id is None:
            part = await client.uploads.parts.create(upload.id, data=("part", content))
            id = part.id
        ids.append(id)
    return _file_id(await client.uploads.complete(upload.id, part_ids=ids, timeout=LONGEST_JOIN))


async def _async_create(client: AsyncOpenAI, source: Source, key: str | None) -> Upload:
    return await client.uploads.create(
        bytes=source.size,
        filename=source.name,
        mime_type=MIME_TYPE,
        purpose="batch",
        extra_headers=idempotency(key, "upload"),
    )


async def _async_known(client: AsyncOpenAI, upload_id: str) -> UploadWithParts | None:
    try:
        return await client.get(path(ONE, upload_id=upload_id), cast_to=UploadWithParts)
    except PermissionDeniedError:
        return None


def _file_id(upload: Upload) -> str:
    if upload.file is None:
        raise OpenAIError(f"the server completed {upload.id} without a file")
    return upload.file.id

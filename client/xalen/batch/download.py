"""The lines of a file, over as many connections as it takes: a broken one is resumed by Range."""

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    aclosing,
    asynccontextmanager,
    closing,
    contextmanager,
)
from typing import Any

from openai import (
    APIConnectionError,
    APIResponse,
    AsyncAPIResponse,
    AsyncOpenAI,
    OpenAI,
    RequestOptions,
)

from xalen._errors import DownloadError
from xalen._options import path
from xalen.batch.outage import PASSING, SILENCE, Outage

OUTPUT = "/batches/{batch_id}/output"
# As `with_streaming_response` asks for an answer that is not read yet.
STREAMED = "X-Stainless-Raw-Response"
_SHA256 = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)", re.ASCII)


class ResumableBody:
    """Gives each line of a body once, however many answers bring its bytes.

    After a broken answer, `fields()` ask for the rest. An answer with the whole body is right too:
    the bytes that were received before are skipped.
    """

    def __init__(self) -> None:
        self.received = 0
        self._hash = hashlib.sha256()
        # The beginning of a line, whose end has not arrived.
        self._rest = bytearray()
        # What the answers so far stated of the whole body.
        self._tag: str | None = None
        self._sha256: bytes | None = None
        # Of the current answer: the position of its next byte, and the size of the whole body.
        self._position = 0
        self._size: int | None = None

    def fields(self) -> dict[str, str]:
        """The fields of the next request."""
        # Positions and the digest are those of the plain bytes.
        plain = {"Accept-Encoding": "identity"}
        if not self.received or self._tag is None:
            return plain
        return {**plain, "Range": f"bytes={self.received}-", "If-Range": self._tag}

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Read the status and the fields of an answer whose chunks follow."""
        tag = headers.get("etag", self._tag)
        if self._tag is not None and tag != self._tag:
            raise DownloadError("the file changed while it was downloaded")
        # A weak tag does not promise the same bytes.
        self._tag = None if tag is None or tag.startswith("W/") else tag
        if stated := _SHA256.search(headers.get("repr-digest", "")):
            self._sha256 = base64.b64decode(stated[1])
        length = headers.get("content-length", "")
        self._position, self._size = 0, int(length) if length.isdigit() else None
        if status == 206:
            part = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
            if part is None or int(part[1]) > self.received:
                raise DownloadError("the server sent another range than it was asked for")
            self._position, self._size = int(part[1]), int(part[2])

    def take(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that end in the current answer's next chunk."""
        fresh = chunk[max(self.received - self._position, 0) :]
        self._position += len(chunk)
        self.received = max(self.received, self._position)
        self._hash.update(fresh)
        first, *more = fresh.split(b"\n")
        self._rest += first
        for piece in more:
            yield bytes(self._rest)
            self._rest[:] = piece

    @property
    def is_short(self) -> bool:
        """Whether bytes are missing that the current answer announced."""
        return self._size is not None and self.received < self._size

    def end(self) -> Iterator[bytes]:
        """The last line, if it has no line end. DownloadError if the bytes are not the file's."""
        if self._sha256 not in (None, self._hash.digest()):
            raise DownloadError(
                f"the {self.received:,} bytes that were received do not have the SHA-256 digest"
                " that the server stated"
            )
        if self._rest:
            yield bytes(self._rest)


Open = Callable[[dict[str, str]], AbstractContextManager[APIResponse[Any]]]
AsyncOpen = Callable[[dict[str, str]], AbstractAsyncContextManager[AsyncAPIResponse[Any]]]


def lines(client: OpenAI, file_id: str | None) -> Iterator[bytes]:
    """The lines of a file; none if there is no file."""
    if file_id is None:
        return
    content = client.files.with_streaming_response.content
    yield from _lines(lambda fields: content(file_id, extra_headers=fields, timeout=SILENCE))


def merged_lines(client: OpenAI, batch_id: str) -> Iterator[bytes]:
    """The lines of a batch's merged results."""
    yield from _lines(lambda fields: _merged(client, batch_id, fields))


@contextmanager
def _merged(client: OpenAI, batch_id: str, fields: dict[str, str]) -> Iterator[APIResponse[bytes]]:
    answer: APIResponse[bytes] = client.get(
        path(OUTPUT, batch_id=batch_id), options=_streamed(fields), cast_to=APIResponse[bytes]
    )
    with closing(answer):
        yield answer


def _lines(open: Open) -> Iterator[bytes]:
    """The lines of a body. `open` sends a request with these fields."""
    body, outage = ResumableBody(), Outage()
    while True:
        before = body.received
        try:
            yield from _answer(open, body)
            return
        except PASSING as error:
            if body.received > before:
                outage.over()
            time.sleep(outage.pause(error))


def _answer(open: Open, body: ResumableBody) -> Iterator[bytes]:
    """The lines of one answer. APIConnectionError if it ends early."""
    with open(body.fields()) as answer:
        body.begin(answer.status_code, answer.headers)
        chunks = answer.iter_bytes()
        while chunk := _next(chunks, answer):
            yield from body.take(chunk)
        if body.is_short:
            raise _lost(answer)
    yield from body.end()


def _streamed(fields: dict[str, str]) -> RequestOptions:
    """The options of a request for merged results whose answer is not read by `openai`."""
    return {
        "headers": {**fields, "Accept": "application/jsonl", STREAMED: "stream"},
        "params": {"merged": "true"},
        "timeout": SILENCE,
    }


def _next(chunks: Iterator[bytes], answer: APIResponse[bytes]) -> bytes:
    """The next chunk; empty at the end.

    Every error counts as one of the connection: the HTTP client is the caller's choice (httpx2 or
    httpx), so the classes of its errors are not known here.
    """
    try:
        return next(chunks, b"")
    except Exception as error:
        raise _lost(answer) from error


def _lost(answer: APIResponse[bytes] | AsyncAPIResponse[bytes]) -> APIConnectionError:
    return APIConnectionError(
        message="The connection ended in the middle of an answer.", request=answer.http_request
    )


async def async_lines(client: AsyncOpenAI, file_id: str | None) -> AsyncIterator[bytes]:
    """The lines of a file; none if there is no file."""
    if file_id is None:
        return
    content = client.files.with_streaming_response.content
    async for line in _async_lines(
        lambda fields: content(file_id, extra_headers=fields, timeout=SILENCE)
    ):
        yield line


async def async_merged_lines(client: AsyncOpenAI, batch_id: str) -> AsyncIterator[bytes]:
    """The lines of a batch's merged results."""
    async for line in _async_lines(lambda fields: _async_merged(client, batch_id, fields)):
        yield line


@asynccontextmanager
async def _async_merged(
    client: AsyncOpenAI, batch_id: str, fields: dict[str, str]
) -> AsyncIterator[AsyncAPIResponse[bytes]]:
    answer: AsyncAPIResponse[bytes] = await client.get(
        path(OUTPUT, batch_id=batch_id), options=_streamed(fields), cast_to=AsyncAPIResponse[bytes]
    )
    try:
        yield answer
    finally:
        await answer.close()


async def _async_lines(open: AsyncOpen) -> AsyncIterator[bytes]:
    body, outage = ResumableBody(), Outage()
    while True:
        before = body.received
        try:
            async with aclosing(_async_answer(open, body)) as answer:
                async for line in answer:
                    yield line
            return
        except PASSING as error:
            if body.received > before:
                outage.over()
            await asyncio.sleep(outage.pause(error))


async def _async_answer(open: AsyncOpen, body: ResumableBody) -> AsyncGenerator[bytes]:
    """The lines of one answer. APIConnectionError if it ends early."""
    async with open(body.fields()) as answer:
        body.begin(answer.status_code, answer.headers)
        chunks = answer.iter_bytes()
        while chunk := await _async_next(chunks, answer):
            for line in body.take(chunk):
                yield line
        if body.is_short:
            raise _lost(answer)
    for line in body.end():
        yield line


async def _async_next(chunks: AsyncIterator[bytes], answer: AsyncAPIResponse[bytes]) -> bytes:
    """The next chunk; empty at the end. Every error counts as one of the connection."""
    try:
        return await anext(chunks, b"")
    except Exception as error:
        raise _lost(answer) from error

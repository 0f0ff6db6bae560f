"""A connection of PlainClient. It counts every byte of an answer, also those outside the body."""

import asyncio
from typing import cast

import httptools

from xalen_batch.backends.buffer import Buffer
from xalen_batch.backends.clients.contract import AnswerTooLong, NoReply, Reply

# Cap on the bytes of an answer outside its body: status lines, headers, 1xx answers, chunk sizes
# and extensions, trailers.
HEAD_BYTES = 64 * 1024
# The cap grows by this many bytes for each byte of the body, which may come in small chunks.
FRAMING_PER_BYTE = 16
MOST_HEADERS = 256
# Bytes. A part of a body that is smaller is merged with the next one.
WHOLE_PART = 16 * 1024
# Up to this size, copying head and body into one write is cheaper than a second write.
COPIED_BYTES = 64 * 1024


class Stale(Exception):
    """The connection ended before the first byte of an answer."""


class Connection(asyncio.BufferedProtocol):
    """Carries one request at a time. httptools calls the on_… methods.

    Used on the event loop thread.
    """

    __slots__ = (
        "_answer",
        "_began",
        "_buffer",
        "_frames",
        "_has_head",
        "_headers",
        "_longest",
        "_loop",
        "_parser",
        "_parts",
        "_paused_at",
        "_paused_seconds",
        "_read",
        "_received",
        "_size",
        "_transport",
        "_went_on",
        "buffered",
        "encoding",
        "is_open",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: Buffer, read: memoryview) -> None:
        self._loop = loop
        # Most bytes of the body of the answer.
        self._longest = 0
        self._buffer = buffer
        self._read = read
        self._paused_at: float | None = None
        self._went_on: asyncio.Future[None] | None = None
        self.encoding = b""
        self._paused_seconds = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Reply] | None = None
        self._transport: asyncio.Transport | None = None
        self.is_open = False
        # Bytes received since the request was sent, 1xx answers included.
        self._received = 0
        # Bytes of the body that were reported to the buffer.
        self.buffered = 0
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes | bytearray] = []
        self._size = 0
        self._began = self._has_head = self._frames = False

    def send(self, head: bytes, body: bytes, longest: int) -> asyncio.Future[Reply]:
        """Send a request, and return a future of its reply, whose body has at most `longest` bytes.

        Without a reply, the future raises NoReply or Stale, and the connection is closed.
        """
        transport = cast(asyncio.Transport, self._transport)
        answer = self._answer = self._loop.create_future()
        self._longest = longest
        self._received = self.buffered = 0
        self._paused_seconds = 0.0
        if not self.is_open:
            # The server closed the connection, or sent bytes unasked, before this request.
            self._fail(Stale())
            return answer
        if len(body) <= COPIED_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        return answer

    def abort(self, reason: Exception) -> None:
        """Close at once; the future of a pending reply raises `reason`."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()
        self._fail(reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._answer is None or self._answer.done():
            return
        if not self._received:
            self._fail(Stale())
        elif self._has_head and not self._frames:
            # Without a length or chunks, the body ends with the connection.
            self._finish()
        else:
            self._fail(NoReply("it broke off in the middle of the answer"))

    def pause(self) -> None:
        self._paused_at = self._loop.time()
        if self.is_open:
            cast(asyncio.Transport, self._transport).pause_reading()

    def resume(self) -> None:
        self._paused_seconds = self.paused_for(self._loop.time())
        self._paused_at = None
        if self._went_on is not None and not self._went_on.done():
            self._went_on.set_result(None)
        if self.is_open:
            cast(asyncio.Transport, self._transport).resume_reading()

    def paused_for(self, now: float) -> float:
        """Seconds of this request in which reading was paused, because the buffer was full."""
        return self._paused_seconds + (0.0 if self._paused_at is None else now - self._paused_at)

    async def go_on(self) -> None:
        """If reading is paused, wait until it is resumed."""
        if self._paused_at is not None:
            self._went_on = self._loop.create_future()
            await self._went_on

    def count(self, arrived: int) -> None:
        """Report bytes of the body that have arrived to the buffer."""
        self.buffered += arrived
        self._buffer.arrived(self, arrived)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._read

    def buffer_updated(self, count: int) -> None:
        if self._answer is None:
            # Bytes without a request: they could be taken for the answer to the next request.
            self.abort(NoReply("it sent what nobody asked for"))
            return
        self._received += count
        try:
            self._parser.feed_data(self._read[:count])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.abort(NoReply(f"its answer is not HTTP ({type(error).__name__})"))
            return
        if self._answer is None:
            if self._began:
                self.abort(NoReply("it sent more than the answer"))
        elif self._received - self._size > HEAD_BYTES + FRAMING_PER_BYTE * self._size:
            self.abort(
                NoReply(
                    "its answer has too many bytes around its body"
                    if self._has_head
                    else "the head of its answer does not end"
                )
            )
        elif self._size > self.buffered:
            # Most answers arrive whole in one read, and are not reported.
            self.count(self._size - self.buffered)

    def on_message_begin(self) -> None:
        self._began = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._has_head:
            # A trailer, which we ignore.
            return
        name = name.lower()
        self._headers[name] = value
        if name in (b"content-length", b"transfer-encoding"):
            self._frames = True
        if len(self._headers) > MOST_HEADERS:
            self.abort(NoReply(f"its answer has more than {MOST_HEADERS} headers"))

    def on_headers_complete(self) -> None:
        self._has_head = True
        if int(self._headers.get(b"content-length", 0)) > self._longest:
            self.abort(AnswerTooLong())

    def on_body(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._longest:
            self.abort(AnswerTooLong())
        elif self._parts and len(self._parts[-1]) < WHOLE_PART:
            # Merge small parts: as separate objects they take many times their bytes.
            last = self._parts[-1]
            if isinstance(last, bytes):
                last = self._parts[-1] = bytearray(last)
            last += part
        else:
            self._parts.append(part)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            # 1xx, such as 100 Continue or 103 Early Hints: the answer is still to come.
            self._clear()
            return
        if (
            not self._parser.should_keep_alive()
            or cast(asyncio.Transport, self._transport).get_write_buffer_size()
        ):
            self.is_open = False
        self._finish()
        if not self.is_open:
            cast(asyncio.Transport, self._transport).abort()

    def _finish(self) -> None:
        answer, headers = self._answer, self._headers
        if answer is None or answer.done():
            return
        self.encoding = headers.get(b"content-encoding", b"")
        answer.set_result(
            Reply(self._parser.get_status_code(), b"".join(self._parts), _Headers(headers).get)
        )
        self._answer = None
        self._clear()

    def _fail(self, reason: Exception) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(reason)

    def _clear(self) -> None:
        self._headers = {}
        self._parts = []
        self._size = 0
        self._began = self._has_head = self._frames = False


class _Headers:
    __slots__ = ("_headers",)

    def __init__(self, headers: dict[bytes, bytes]) -> None:
        self._headers = headers

    def get(self, name: str) -> str | None:
        value = self._headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

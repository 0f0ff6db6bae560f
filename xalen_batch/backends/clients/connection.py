"""One connection of the plain client: a request at a time, and its answer, of which every byte is
counted.
"""

import asyncio
from typing import cast

import httptools

from xalen_batch.backends.buffer import Buffer
from xalen_batch.backends.clients.contract import AnswerTooLong, NoReply, Reply

# Most bytes of an answer beside its body: status lines, headers, 1xx answers, chunk sizes and
# extensions, trailers.
HEAD_BYTES = 64 * 1024
# A body in small chunks may have this many bytes around each of its own.
FRAMING_PER_BYTE = 16
MOST_HEADERS = 256
# Parts of a body that are smaller are put together.
WHOLE_PART = 16 * 1024
# Up to this size, copying a body behind its head is cheaper than a second write.
COPIED_BYTES = 64 * 1024


class Stale(Exception):
    """The connection ended before the first byte of an answer."""


class Connection(asyncio.BufferedProtocol):
    """One request at a time, and its answer. httptools calls the on_… methods."""

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

    def __init__(
        self, loop: asyncio.AbstractEventLoop, longest: int, buffer: Buffer, read: memoryview
    ) -> None:
        self._loop = loop
        self._longest = longest
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
        # Since the request was sent, 1xx answers included.
        self._received = 0
        # Bytes of the body that the buffer knows of.
        self.buffered = 0
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes | bytearray] = []
        self._size = 0
        self._began = self._has_head = self._frames = False

    def send(self, head: bytes, body: bytes) -> asyncio.Future[Reply]:
        """Send a request.

        Its answer ends with NoReply or Stale where there is none; the connection is closed then.
        """
        transport = cast(asyncio.Transport, self._transport)
        answer = self._answer = self._loop.create_future()
        self._received = self.buffered = 0
        self._paused_seconds = 0.0
        if not self.is_open:
            # The server closed it, or sent an answer, between the connect and this request.
            self._fail(Stale())
            return answer
        if len(body) <= COPIED_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        return answer

    def abort(self, reason: Exception) -> None:
        """Close at once; who waits for an answer gets the reason."""
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
            # Its end is that of the connection.
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
        """Seconds of this request in which its answer was not read, because the buffer was full."""
        return self._paused_seconds + (0.0 if self._paused_at is None else now - self._paused_at)

    async def go_on(self) -> None:
        """Wait while the answer is paused."""
        if self._paused_at is not None:
            self._went_on = self._loop.create_future()
            await self._went_on

    def count(self, arrived: int) -> None:
        """Tell the buffer of bytes that are here."""
        self.buffered += arrived
        self._buffer.arrived(self, arrived)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._read

    def buffer_updated(self, count: int) -> None:
        if self._answer is None:
            # Nobody asked: the next answer could not be told from this.
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
            # Not for an answer that one read has brought whole, as most are.
            self.count(self._size - self.buffered)

    def on_message_begin(self) -> None:
        self._began = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._has_head:
            # A trailer; nothing here reads one.
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
            # A list of small parts costs many times their bytes.
            last = self._parts[-1]
            if isinstance(last, bytes):
                last = self._parts[-1] = bytearray(last)
            last += part
        else:
            self._parts.append(part)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            # "Go on", or a hint; the answer is still to come.
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

"""The client for plain HTTP/1.1 to a server that is reached directly: the usual way to a model beside the workers.

A worker's CPU goes mostly into its HTTP client. This one does what a POST of JSON needs on connections that stay
open, and nothing else: no TLS, no proxy, no redirect, no cookie. What is parsed is parsed by httptools (llhttp).
"""

import asyncio
import zlib
from collections.abc import Iterator, Mapping
from typing import cast
from urllib.parse import urlsplit

import httptools

from xalen_batch.backends.buffer import READ_BYTES, Buffer
from xalen_batch.backends.clients.contract import AnswerTooLong, Limits, NoReply, NotConnected, Reply, TimedOut

# Most bytes of an answer beside its body: status lines, headers, 1xx answers, chunk sizes and extensions, trailers.
HEAD_BYTES = 64 * 1024
# A body in small chunks may have this many bytes around each of its own.
FRAMING_PER_BYTE = 16
MOST_HEADERS = 256
# Up to this size, copying a body behind its head is cheaper than a second write.
COPIED_BYTES = 64 * 1024
# How often those that wait are looked at, as a share of the timeout; and at least so often, in seconds.
LOOKS_PER_TIMEOUT = 20
LOOK_AT_LEAST = 1.0
# gzip and zlib streams, told apart by their first bytes.
_INFLATE = 32 + zlib.MAX_WBITS
INFLATED_AT_A_TIME = 4 * 1024


class PlainClient:
    """`url`: http://host[:port][/path]. A connection that was kept open and turns out dead is replaced by a new one, once."""

    def __init__(self, url: str, headers: Mapping[str, str], limits: Limits, buffer: Buffer) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._root = parts.hostname or "", parts.port or 80, parts.path.rstrip("/")
        self._limits = limits
        self._buffer = buffer
        # Each connection's bytes are parsed before the next is read.
        self._read = memoryview(bytearray(READ_BYTES))
        # Nobody asked for a compressed answer; one that comes all the same is understood.
        fixed = {"host": parts.netloc, "accept-encoding": "identity", **headers}
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in fixed.items()).encode("latin-1")
        self._heads: dict[str, bytes] = {}
        # The one used last is taken first: it is the least likely to be dead.
        self._idle: list[_Connection] = []
        # What waits for an answer, by when it has to be there: oldest first, since all have the same time.
        self._waiting: dict[_Connection, float] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    async def post(self, path: str, body: bytes, request_id: str) -> Reply:
        head = b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (self._head(path), request_id.encode("ascii"), len(body))
        deadline = self._loop.time() + self._limits.request_timeout
        kept = self._kept()
        connection = kept or await self._connect(deadline)
        while True:
            self._waiting[connection] = deadline
            if self._looking is None:
                self._look()
            try:
                reply = await connection.send(head, body)
                if connection.encoding:
                    reply = reply._replace(body=await self._inflated(connection, reply.body))
                break
            except _Stale as error:
                if connection is not kept:
                    raise NoReply("the server closed it before it answered") from error
                # It was closed while it was idle: that says nothing about the server, or the request.
            except asyncio.CancelledError:
                connection.abort(NoReply("the request was given up"))
                raise
            finally:
                del self._waiting[connection]
                if connection.buffered:
                    self._buffer.ended(connection)
            connection = await self._connect(deadline)
        if connection.is_open:
            self._idle.append(connection)
        return reply

    async def _inflated(self, connection: "_Connection", body: bytes) -> bytes:
        """The body of an answer that came compressed. Its bytes arrive as they are inflated, within the buffer as any others."""
        try:
            found = bytearray()
            for part in _inflate(body, connection.encoding):
                found += part
                if len(found) > self._limits.answer_bytes:
                    raise AnswerTooLong
                connection.count(len(part))
                await connection.go_on()
            return bytes(found)
        except NoReply as reason:
            connection.abort(reason)
            raise

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        for connection in [*self._idle, *self._waiting]:
            connection.abort(NoReply("the client was closed"))

    def _head(self, path: str) -> bytes:
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = f"POST {self._root}{path} HTTP/1.1\r\n".encode("ascii") + self._fixed
        return head

    def _kept(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self, deadline: float) -> "_Connection":
        try:
            async with asyncio.timeout_at(min(deadline, self._loop.time() + self._limits.connect_timeout)):
                _, connection = await self._loop.create_connection(
                    lambda: _Connection(self._loop, self._limits.answer_bytes, self._buffer, self._read), self._host, self._port
                )
        except (OSError, TimeoutError, UnicodeError) as error:
            raise NotConnected(str(error)) from error
        return connection

    def _look(self) -> None:
        """Give up on what has waited too long. One timer for all of them: one each costs as much as a request."""
        now = self._loop.time()
        for connection, deadline in list(self._waiting.items()):
            if deadline > now:
                break
            if deadline + connection.paused_for(now) > now:
                # It waited for us.
                continue
            connection.abort(TimedOut("no answer in time"))
        pause = min(LOOK_AT_LEAST, self._limits.request_timeout / LOOKS_PER_TIMEOUT)
        self._looking = self._loop.call_later(pause, self._look) if self._waiting else None


class _Stale(Exception):
    """The connection ended before the first byte of an answer."""


class _Connection(asyncio.BufferedProtocol):
    """One request at a time, and its answer. httptools calls the on_… methods."""

    __slots__ = (
        "_answer",
        "_began",
        "_body",
        "_buffer",
        "_frames",
        "_has_head",
        "_headers",
        "_longest",
        "_loop",
        "_parser",
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

    def __init__(self, loop: asyncio.AbstractEventLoop, longest: int, buffer: Buffer, read: memoryview) -> None:
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
        self._body: bytes | bytearray = b""
        self._size = 0
        self._began = self._has_head = self._frames = False

    def send(self, head: bytes, body: bytes) -> asyncio.Future[Reply]:
        """Send a request. Its answer ends with NoReply or _Stale where there is none; the connection is closed then."""
        transport = cast(asyncio.Transport, self._transport)
        answer = self._answer = self._loop.create_future()
        self._received = self.buffered = 0
        self._paused_seconds = 0.0
        if not self.is_open:
            # The server closed it, or sent an answer, between the connect and this request.
            self._fail(_Stale())
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
            self._fail(_Stale())
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
                NoReply("its answer has too many bytes around its body" if self._has_head else "the head of its answer does not end")
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
        elif not self._body:
            # Most answers come in one part, which needs no copy.
            self._body = part
        else:
            # One buffer, because a list of parts costs many times the bytes of small ones.
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += part

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            # "Go on", or a hint; the answer is still to come.
            self._clear()
            return
        if not self._parser.should_keep_alive() or cast(asyncio.Transport, self._transport).get_write_buffer_size():
            self.is_open = False
        self._finish()
        if not self.is_open:
            cast(asyncio.Transport, self._transport).abort()

    def _finish(self) -> None:
        answer, headers = self._answer, self._headers
        if answer is None or answer.done():
            return
        self.encoding = headers.get(b"content-encoding", b"")
        answer.set_result(Reply(self._parser.get_status_code(), bytes(self._body), _Headers(headers).get))
        self._answer = None
        self._clear()

    def _fail(self, reason: Exception) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(reason)

    def _clear(self) -> None:
        self._headers = {}
        self._body = b""
        self._size = 0
        self._began = self._has_head = self._frames = False


class _Headers:
    __slots__ = ("_headers",)

    def __init__(self, headers: dict[bytes, bytes]) -> None:
        self._headers = headers

    def get(self, name: str) -> str | None:
        value = self._headers.get(name.encode())
        return None if value is None else value.decode("latin-1")


def _inflate(body: bytes, encoding: bytes) -> Iterator[bytes]:
    """What a server compressed unasked, in parts of at most READ_BYTES. Raises NoReply for what cannot be read."""
    encoding = encoding.strip().lower()
    if encoding == b"identity":
        yield body
        return
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        raise NoReply("its answer has an encoding that it was not asked for")
    inflate = zlib.decompressobj(_INFLATE)
    try:
        for begin in range(0, len(body), INFLATED_AT_A_TIME):
            rest = body[begin : begin + INFLATED_AT_A_TIME]
            while rest and not inflate.eof:
                yield inflate.decompress(rest, READ_BYTES)
                rest = inflate.unconsumed_tail
    except zlib.error as error:
        raise NoReply("its answer is not compressed as it says") from error
    if not inflate.eof:
        raise NoReply("its compressed answer is cut off")

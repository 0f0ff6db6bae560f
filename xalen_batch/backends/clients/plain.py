"""The client for plain HTTP/1.1 without a proxy, the usual way to a model server near the workers.

A worker's CPU goes mostly into its HTTP client. This one sends POSTs over keep-alive connections
and does nothing else: no TLS, proxies, redirects or cookies. httptools (llhttp) parses the answers.
"""

import asyncio
from collections.abc import Mapping
from urllib.parse import urlsplit

from xalen_batch.backends.buffer import READ_BYTES, Buffer
from xalen_batch.backends.clients.connection import Connection, Stale
from xalen_batch.backends.clients.contract import (
    AnswerTooLong,
    Limits,
    NoReply,
    NotConnected,
    Reply,
    TimedOut,
)
from xalen_batch.backends.clients.inflate import inflate

# The deadlines of requests in flight are checked LOOKS_PER_TIMEOUT times in a request timeout, and
# at least every LOOK_AT_LEAST seconds.
LOOKS_PER_TIMEOUT = 20
LOOK_AT_LEAST = 1.0


class PlainClient:
    """A client for `url`, which is http://host[:port][/path]. Used on the event loop thread.

    If a kept connection turns out dead, the request is sent again on a new one, once.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], limits: Limits, buffer: Buffer
    ) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._root = (
            parts.hostname or "",
            parts.port or 80,
            parts.path.rstrip("/"),
        )
        self._limits = limits
        self._buffer = buffer
        # All connections share one read buffer: bytes are parsed before the next read.
        self._read = memoryview(bytearray(READ_BYTES))
        # We ask for no compression. An answer that is compressed all the same is inflated.
        fixed = {"host": parts.netloc, "accept-encoding": "identity", **headers}
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in fixed.items()).encode(
            "latin-1"
        )
        self._heads: dict[str, bytes] = {}
        # A stack: the connection used last is the least likely to be dead.
        self._idle: list[Connection] = []
        # The deadline of each connection with a request in flight. All requests have the same
        # timeout, so the earliest deadlines come first.
        self._waiting: dict[Connection, float] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    async def post(
        self, path: str, body: bytes, request_id: str, longest: int | None = None
    ) -> Reply:
        longest = longest or self._limits.answer_bytes
        head = b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (
            self._head(path),
            request_id.encode("ascii"),
            len(body),
        )
        deadline = self._loop.time() + self._limits.request_timeout
        kept = self._kept()
        connection = kept or await self._connect(deadline)
        while True:
            self._waiting[connection] = deadline
            if self._looking is None:
                self._look()
            try:
                reply = await connection.send(head, body, longest)
                if connection.encoding:
                    reply = reply._replace(
                        body=await self._inflated(connection, reply.body, longest)
                    )
                break
            except Stale as error:
                if connection is not kept:
                    raise NoReply("the server closed it before it answered") from error
                # The server closed the connection while it was idle, as it may: neither server nor
                # request has failed.
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

    async def _inflated(self, connection: Connection, body: bytes, longest: int) -> bytes:
        """Inflate a compressed body. Raises NoReply if it is invalid or too long.

        Each inflated part counts in the buffer, so back-pressure can pause the inflating.
        """
        try:
            found = bytearray()
            for part in inflate(body, connection.encoding):
                found += part
                if len(found) > longest:
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
            head = self._heads[path] = (
                f"POST {self._root}{path} HTTP/1.1\r\n".encode("ascii") + self._fixed
            )
        return head

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self, deadline: float) -> Connection:
        try:
            async with asyncio.timeout_at(
                min(deadline, self._loop.time() + self._limits.connect_timeout)
            ):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self._loop, self._buffer, self._read),
                    self._host,
                    self._port,
                )
        except (OSError, TimeoutError, UnicodeError) as error:
            raise NotConnected(str(error)) from error
        return connection

    def _look(self) -> None:
        """Abort the requests that are past their deadline.

        One timer serves all requests: a timer for each would cost as much as the request itself.
        """
        now = self._loop.time()
        for connection, deadline in list(self._waiting.items()):
            if deadline > now:
                break
            if deadline + connection.paused_for(now) > now:
                # The time in which we paused reading is not the server's.
                continue
            connection.abort(TimedOut("no answer in time"))
        pause = min(LOOK_AT_LEAST, self._limits.request_timeout / LOOKS_PER_TIMEOUT)
        self._looking = self._loop.call_later(pause, self._look) if self._waiting else None

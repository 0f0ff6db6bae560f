"""The client for TLS and proxies: pyreqwest (docs/decisions/0003).

Its parser bounds heads, trailers and chunk extensions. It skips 1xx answers and leading zeros of a
chunk's size without counting them; these take no memory, and the request's timeout ends them.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta

from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import BuilderError, ConnectError, PyreqwestError, RequestTimeoutError
from pyreqwest.response import Response

from xalen_batch.backends.buffer import Buffer
from xalen_batch.backends.clients.contract import (
    AnswerTooLong,
    Limits,
    NoReply,
    NotConnected,
    Reply,
    Streamed,
    TimedOut,
)
from xalen_batch.errors import ConfigError


class FullClient:
    """A client for any URL. It honours the standard proxy variables unless `is_direct`.

    Used on the event loop thread.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        limits: Limits,
        buffer: Buffer,
        *,
        is_direct: bool,
        connections: int,
        ca_certificates: Sequence[bytes] = (),
    ) -> None:
        builder = (
            ClientBuilder()
            .default_headers(dict(headers))
            .follow_redirects(False)
            .connect_timeout(timedelta(seconds=limits.connect_timeout))
            .pool_max_idle_per_host(connections)
        )
        try:
            for certificate in ca_certificates:
                builder = builder.add_root_certificate_pem(certificate)
            self._client = (builder.no_proxy() if is_direct else builder).build()
        except BuilderError as error:
            raise ConfigError(
                "The catalog's ca_file has a certificate that cannot be used."
            ) from error
        self._url = url
        self._limits = limits
        self._buffer = buffer

    async def post(
        self, path: str, body: bytes, request_id: str, longest: int | None = None
    ) -> Reply:
        longest = longest or self._limits.answer_bytes
        request = (
            self._client.post(self._url + path).header("x-request-id", request_id).body_bytes(body)
        )
        with _as_no_reply():
            async with asyncio.timeout(self._limits.request_timeout) as time_left:
                answer = _Arriving(time_left)
                try:
                    async with request.build_streamed() as response:
                        reply = Reply(
                            response.status,
                            await self._read(response, answer, longest),
                            response.get_header,
                        )
                finally:
                    self._buffer.ended(answer)
                return reply

    @asynccontextmanager
    async def stream(self, path: str, body: bytes, request_id: str) -> AsyncIterator[Streamed]:
        """POST `body`, and read the answer as it arrives. Raises NoReply, also while it is read."""
        request = (
            self._client.post(self._url + path)
            .header("x-request-id", request_id)
            .body_bytes(body)
            # By default it reads 64 KiB of the answer before it returns any.
            .streamed_read_buffer_limit(0)
        )
        deadline = asyncio.get_running_loop().time() + self._limits.request_timeout
        async with AsyncExitStack() as opened:
            # A timeout cancels the task that entered it, and another may read the answer.
            with _as_no_reply():
                async with asyncio.timeout_at(deadline):
                    response = await opened.enter_async_context(request.build_streamed())
            yield Streamed(response.status, _chunks(response, deadline), response.get_header)

    async def close(self) -> None:
        await self._client.close()

    async def _read(self, response: Response, answer: "_Arriving", longest: int) -> bytes:
        # One bytearray: small parts as separate objects take many times their bytes.
        reader, body = response.body_reader, bytearray()
        while (chunk := await reader.read_chunk()) is not None:
            body += chunk.to_bytes()
            if len(body) > longest:
                raise AnswerTooLong
            self._buffer.arrived(answer, len(chunk))
            await answer.may_go_on.wait()
        return bytes(body)


async def _chunks(response: Response, deadline: float) -> AsyncIterator[bytes]:
    while True:
        with _as_no_reply():
            async with asyncio.timeout_at(deadline):
                chunk = await response.body_reader.read_chunk()
        if chunk is None:
            return
        yield chunk.to_bytes()


@contextmanager
def _as_no_reply() -> Iterator[None]:
    """Raise the errors of the library, and of timeouts, as NoReply."""
    try:
        yield
    except TimeoutError as error:
        raise TimedOut("no answer in time") from error
    except RequestTimeoutError as error:
        raise TimedOut(error.message) from error
    except ConnectError as error:
        raise NotConnected(error.message) from error
    except PyreqwestError as error:
        raise NoReply(error.message.rstrip(".")) from error


class _Arriving:
    """An arriving answer, which the buffer can pause; a pause suspends the request's timeout."""

    def __init__(self, time_left: asyncio.Timeout) -> None:
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self._time_left = time_left
        self._seconds_left = 0.0

    def pause(self) -> None:
        self.may_go_on.clear()
        if not self._time_left.expired():
            self._seconds_left = (self._time_left.when() or 0.0) - asyncio.get_running_loop().time()
            self._time_left.reschedule(None)

    def resume(self) -> None:
        self.may_go_on.set()
        if not self._time_left.expired():
            self._time_left.reschedule(asyncio.get_running_loop().time() + self._seconds_left)

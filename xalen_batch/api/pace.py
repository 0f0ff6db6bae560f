"""Clients that send a request too slowly to be meant: they would keep a connection, and an upload, for ever."""

import asyncio
import json
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from xalen_batch.errors import RequestTimeout

# A request's head has to be there within so many seconds, and of its body so many bytes in each such time.
PATIENCE = 60.0
LEAST_BYTES = 16 * 1024


class BodyPace:
    """Refuses a body that stalls. What counts is the time spent waiting for the client, never ours."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        waited, came, is_whole = 0.0, 0, False

        async def receive_in_time() -> Message:
            nonlocal waited, came, is_whole
            while not is_whole:
                begun = time.monotonic()
                try:
                    async with asyncio.timeout(PATIENCE - waited):
                        message = await receive()
                except TimeoutError:
                    if came < LEAST_BYTES:
                        # An HTTPException passes through the framework's own handling of broken bodies.
                        raise HTTPException(
                            408,
                            f"The body came too slowly: {came:,} bytes in {PATIENCE:g} s. Send at least {LEAST_BYTES:,} in that time.",
                        ) from None
                    waited, came = 0.0, 0
                else:
                    waited = min(waited + time.monotonic() - begun, PATIENCE)
                    came += len(message.get("body", b""))
                    is_whole = not message.get("more_body", False)
                    return message
            # From here on it is only asked whether the client is still there.
            return await receive()

        await self.app(scope, receive_in_time, send)


class HeadPace(HttpToolsProtocol):
    """uvicorn's protocol, which ends a connection whose next request does not have its head in time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._late is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._forget()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._late = self.loop.call_later(PATIENCE, self._end)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        if self.transport.is_closing():
            return
        # Who has said nothing is told nothing.
        if self.scope is not None:
            error = RequestTimeout(f"The request's headers did not come within {PATIENCE:g} s. Send them at once.")
            body = json.dumps(error.body()).encode()
            head = f"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
        self.transport.close()

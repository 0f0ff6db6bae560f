"""HTTP on a connection, with bounds: the parser keeps what comes before a request is whole, and would keep it for ever."""

import json
import time
import uuid
from asyncio import BaseTransport, TimerHandle
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from xalen_batch.errors import HeadTooLarge, InvalidRequest, XalenError

# Bytes that bring neither a request's head to its end nor any of its body: long URLs and headers, trailers, chunk extensions.
MOST_OVERHEAD = 64 * 1024
# Seconds in which a head has to come whole, and in which a body has to go on.
PATIENCE = 60.0


class BoundedHttp(HttpToolsProtocol):
    """Answers what is no HTTP in the API's envelope too, and closes connections that take more than their share."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._overhead = 0
        self._is_too_large = False
        self._is_owed = True  # the rest of a request, from the client
        self._moved = 0.0
        self._timer: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast(Any, transport))
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._overhead += len(data)
        super().data_received(data)
        if self._is_too_large or self._overhead > MOST_OVERHEAD:
            self._refuse(
                HeadTooLarge(f"The request's head has more than {MOST_OVERHEAD:,} bytes. Send shorter headers, and data in the body.")
            )

    def on_message_begin(self) -> None:
        self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._went_on()
        # It may have come in one piece.
        self._is_too_large = len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_OVERHEAD
        if not self._is_too_large:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._went_on()
        if not self._is_too_large:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_owed = False
        if not self._is_too_large:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest(f"{msg} Let an HTTP client build it.", code="invalid_http"))

    def _wait(self) -> None:
        self._is_owed, self._moved = True, time.monotonic()
        if self._timer is None:
            self._timer = self.loop.call_later(PATIENCE, self._look)

    def _went_on(self) -> None:
        self._overhead, self._moved = 0, time.monotonic()

    def _look(self) -> None:
        """Close the connection if it is the client who keeps us waiting, and not we who do not read."""
        self._timer = None
        if not self._is_owed or self.transport.is_closing():
            return
        if self.flow.read_paused:
            self._moved = time.monotonic()
        left = self._moved + PATIENCE - time.monotonic()
        if left <= 0:
            self.transport.close()
        else:
            self._timer = self.loop.call_later(left, self._look)

    def _refuse(self, error: XalenError) -> None:
        if self.transport.is_closing():
            return
        # Into an answer that has begun nothing else can be written.
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            content = json.dumps(error.body())
            head = (
                f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(content)}\r\nx-request-id: req_{uuid.uuid4().hex}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write((head + content).encode("ascii"))
        self.transport.close()

"""HTTP on a connection, with bounds: the parser keeps what comes before a request is whole, and the transport what a client does not
read, and both would for ever."""

import json
import socket
import uuid
from asyncio import BaseTransport, TimerHandle
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from xalen_batch.api import pace
from xalen_batch.errors import HeadTooLarge, InvalidRequest, RequestTimeout, XalenError

# Bytes that bring neither a request's head to its end nor any of its body: long URLs and headers, trailers, chunk extensions.
MOST_OVERHEAD = 64 * 1024


class BoundedHttp(HttpToolsProtocol):
    """Answers what is no HTTP in the API's envelope too, and ends connections whose next head is too long or does not come in time,
    or whose client reads nothing of an answer."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._overhead = 0
        self._is_too_large = False
        self._late: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast(Any, transport))
        _give_up_unread(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._late is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()
        self._overhead += len(data)
        super().data_received(data)
        if self._is_too_large or self._overhead > MOST_OVERHEAD:
            self._refuse(
                HeadTooLarge(f"The request's head has more than {MOST_OVERHEAD:,} bytes. Send shorter headers, and data in the body.")
            )

    def on_headers_complete(self) -> None:
        self._forget()
        self._overhead = 0
        # It may have come in one piece.
        self._is_too_large = len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_OVERHEAD
        if not self._is_too_large:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        if not self._is_too_large:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_too_large:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest(f"{msg} Let an HTTP client build it.", code="invalid_http"))

    def _expect_head(self) -> None:
        self._late = self.loop.call_later(pace.PATIENCE, self._give_up)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        # Who has said nothing is told nothing.
        if self.scope is None:
            self.transport.close()
        else:
            self._refuse(RequestTimeout(f"The request's headers did not come within {pace.PATIENCE:g} s. Send them at once."))

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


def _give_up_unread(transport: BaseTransport) -> None:
    """Have the kernel end a connection whose client takes nothing of what waits for it.

    Only the kernel knows what a client has read, also of the last of an answer that it holds itself. Elsewhere than on Linux it
    does not offer that.
    """
    accepted = transport.get_extra_info("socket")
    if hasattr(socket, "TCP_USER_TIMEOUT") and accepted is not None and accepted.family in (socket.AF_INET, socket.AF_INET6):
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(pace.PATIENCE * 1000))

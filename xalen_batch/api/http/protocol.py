"""HTTP on a connection, with bounds: the parser keeps what comes before a request is whole, and the
transport what a client does not read, and both would for ever.
"""

import json
import math
import socket
import uuid
from asyncio import BaseTransport, TimerHandle
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from xalen_batch.api.http import pace
from xalen_batch.config import settings
from xalen_batch.errors import HeadTooLarge, InvalidRequest, RequestTimeout, Unavailable, XalenError

# Bytes that bring neither a request's head to its end nor any of its body: long URLs and headers,
# trailers, chunk extensions.
MOST_OVERHEAD = 64 * 1024
# Requests that may wait on a connection behind the one that is being answered. The few clients that
# pipeline send fewer.
MOST_PIPELINED = 64
# Seconds in which a connection without a request may still send one while the server stops: it may
# be under way.
LAST_CALL = 1.0
# The first byte of a TLS handshake, which begins no HTTP request.
TLS_HANDSHAKE = 0x16


class BoundedHttp(HttpToolsProtocol):
    """Answers what is no HTTP in the API's envelope too, and ends connections whose next head is
    too long or does not come in time, or whose client reads nothing of an answer.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._overhead = 0
        self._is_too_large = False
        self._is_ahead = False
        self._rested_at = 0.0
        self._late: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast(Any, transport))
        _give_up_unread(transport)
        self._rested_at = self.loop.time()
        if len(self.connections) > settings().max_connections and not self._make_way():
            self._refuse(
                Unavailable(
                    "The server has as many connections as it may. Send the request again in a few"
                    " seconds."
                )
            )
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    @property
    def _is_resting(self) -> bool:
        """Whether no request is being answered: one may be about to come."""
        return self._late is not None or self.timeout_keep_alive_task is not None

    def _make_way(self) -> bool:
        """Close the connection that has rested longest.

        False: every other one has a request that is being answered.
        """
        resting = [
            other
            for other in self.connections
            if isinstance(other, BoundedHttp) and other._is_resting
        ]
        if not resting:
            return False
        longest = min(resting, key=lambda other: other._rested_at)
        longest._forget()
        longest.transport.close()
        self.connections.discard(longest)
        return True

    def data_received(self, data: bytes) -> None:
        if self._late is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()
        if self.scope is None and data[0] == TLS_HANDSHAKE:
            self._refuse(
                InvalidRequest(
                    "This port speaks http, and the client sent TLS. Use http:// in its base_url.",
                    code="invalid_http",
                )
            )
            return
        self._overhead += len(data)
        super().data_received(data)
        if self._is_ahead:
            self._refuse(
                InvalidRequest(
                    f"More than {MOST_PIPELINED} requests wait on this connection. Read their"
                    " answers first.",
                    code="invalid_http",
                )
            )
        elif self._is_too_large or self._overhead > MOST_OVERHEAD:
            self._refuse(
                HeadTooLarge(
                    f"The request's head has more than {MOST_OVERHEAD:,} bytes. Send shorter"
                    " headers, and data in the body."
                )
            )

    def on_headers_complete(self) -> None:
        self._forget()
        self._overhead = 0
        # It may have come in one piece.
        self._is_too_large = (
            len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            > MOST_OVERHEAD
        )
        # The parser reads on to the end of what has come: of short requests that can be thousands.
        self._is_ahead = self._is_ahead or len(self.pipeline) >= MOST_PIPELINED
        if self._is_welcome:
            super().on_headers_complete()
            if self.app_state["stopping"].is_set():
                # The answer says `connection: close`.
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        if self._is_welcome:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_welcome:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._rested_at = self.loop.time()
        if not self.pipeline:
            # The rest of a body that was refused unread would stay for as long as the connection
            # rests.
            self.cycle.body = bytearray()
        super().on_response_complete()

    @property
    def _is_welcome(self) -> bool:
        """Whether the request that the parser is at will be answered."""
        return not (self._is_too_large or self._is_ahead)

    def shutdown(self) -> None:
        """Closes the connection after its request, or after LAST_CALL if it has none."""
        if self.cycle is None or self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                LAST_CALL, self.timeout_keep_alive_handler
            )
        else:
            super().shutdown()

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
            self._refuse(
                RequestTimeout(
                    f"The request's headers did not come within {pace.PATIENCE:g} s. Send them at"
                    " once."
                )
            )

    def _refuse(self, error: XalenError) -> None:
        if self.transport.is_closing():
            return
        # Into an answer that has begun nothing else can be written.
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            content = json.dumps(error.body())
            head = (
                f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type:"
                " application/json\r\ncontent-length:"
                f" {len(content)}\r\n{_pause(error)}x-request-id:"
                f" req_{uuid.uuid4().hex}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write((head + content).encode("ascii"))
        self.transport.close()


def _pause(error: XalenError) -> str:
    return "" if error.retry_after is None else f"retry-after: {math.ceil(error.retry_after)}\r\n"


def _give_up_unread(transport: BaseTransport) -> None:
    """Have the kernel end a connection whose client takes nothing of what waits for it.

    Only the kernel knows what a client has read, also of the last of an answer that it holds
    itself. Elsewhere than on Linux it does not offer that.
    """
    accepted = transport.get_extra_info("socket")
    if (
        hasattr(socket, "TCP_USER_TIMEOUT")
        and accepted is not None
        and accepted.family in (socket.AF_INET, socket.AF_INET6)
    ):
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(pace.PATIENCE * 1000))

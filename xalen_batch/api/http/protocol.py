"""HTTP on a connection, with limits: uvicorn's parser buffers an unfinished head, and its transport
an unread answer, without any limit on bytes or time.

All of it runs in the event loop thread.
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

# The most bytes of a request that belong to no body: its URL and headers, trailers, and chunk
# extensions.
MOST_OVERHEAD = 64 * 1024
# The most pipelined requests on a connection behind the one that is being answered. Few clients
# pipeline, and those send fewer.
MOST_PIPELINED = 64
# Seconds that an idle connection stays open while the server stops: a request may be on its way.
LAST_CALL = 1.0
# The first byte of a TLS handshake; no HTTP request begins with it.
TLS_HANDSHAKE = 0x16


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits on heads, pipelining, connections and idle clients.

    Ends a connection whose next head is too long or late, or whose client does not read its answer.
    Bytes that are not HTTP get an error in the API's envelope too.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._overhead = 0
        self._is_too_large = False
        self._is_too_pipelined = False
        self._idle_since = 0.0
        # Runs out if the next head is late; None while no head is expected.
        self._head_timer: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast(Any, transport))
        _set_unread_timeout(transport)
        self._idle_since = self.loop.time()
        if len(self.connections) > settings().max_connections and not self._close_longest_idle():
            self._refuse(
                Unavailable(
                    "The server has as many connections as it may. Send the request again in a few"
                    " seconds."
                )
            )
            return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    @property
    def _is_idle(self) -> bool:
        """Whether the connection is kept alive without a request, or a head is still expected."""
        return self._head_timer is not None or self.timeout_keep_alive_task is not None

    def _close_longest_idle(self) -> bool:
        """Close the connection that was idle for the longest time; False if none is idle."""
        idle = [
            other for other in self.connections if isinstance(other, BoundedHttp) and other._is_idle
        ]
        if not idle:
            return False
        longest = min(idle, key=lambda other: other._idle_since)
        longest._stop_head_timer()
        longest.transport.close()
        self.connections.discard(longest)
        return True

    def data_received(self, data: bytes) -> None:
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._start_head_timer()
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
        if self._is_too_pipelined:
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
        self._stop_head_timer()
        self._overhead = 0
        # A long head that arrived in one piece was not counted by data_received.
        self._is_too_large = (
            len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            > MOST_OVERHEAD
        )
        # The parser handles all requests of one read at once, which can be thousands of short ones.
        self._is_too_pipelined = self._is_too_pipelined or len(self.pipeline) >= MOST_PIPELINED
        if self._is_accepted:
            super().on_headers_complete()
            if self.app_state["stopping"].is_set():
                # Makes the answer say `connection: close`.
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        if self._is_accepted:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_accepted:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        if not self.pipeline:
            # Drop the rest of a refused body, which would stay in memory on an idle connection.
            self.cycle.body = bytearray()
        super().on_response_complete()

    @property
    def _is_accepted(self) -> bool:
        """Whether the request that is being parsed will be answered."""
        return not (self._is_too_large or self._is_too_pipelined)

    def shutdown(self) -> None:
        """Close the connection after its request, or LAST_CALL seconds from now if it has none."""
        if self.cycle is None or self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                LAST_CALL, self.timeout_keep_alive_handler
            )
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest(f"{msg} Let an HTTP client build it.", code="invalid_http"))

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(pace.CLIENT_TIMEOUT, self._refuse_late_head)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse_late_head(self) -> None:
        # A client that has sent nothing gets no answer.
        if self.scope is None:
            self.transport.close()
        else:
            self._refuse(
                RequestTimeout(
                    f"The request's headers did not come within {pace.CLIENT_TIMEOUT:g} s. Send"
                    " them at once."
                )
            )

    def _refuse(self, error: XalenError) -> None:
        if self.transport.is_closing():
            return
        # No error can be written into an answer that has begun.
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            content = json.dumps(error.body())
            head = (
                f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type:"
                " application/json\r\ncontent-length:"
                f" {len(content)}\r\n{_retry_header(error)}x-request-id:"
                f" req_{uuid.uuid4().hex}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write((head + content).encode("ascii"))
        self.transport.close()


def _retry_header(error: XalenError) -> str:
    return "" if error.retry_after is None else f"retry-after: {math.ceil(error.retry_after)}\r\n"


def _set_unread_timeout(transport: BaseTransport) -> None:
    """Set TCP_USER_TIMEOUT: the kernel ends a connection whose client reads nothing for that time.

    Only the kernel knows how far the client has read, also in the kernel's own send buffer. Linux
    only.
    """
    accepted = transport.get_extra_info("socket")
    if (
        hasattr(socket, "TCP_USER_TIMEOUT")
        and accepted is not None
        and accepted.family in (socket.AF_INET, socket.AF_INET6)
    ):
        accepted.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(pace.CLIENT_TIMEOUT * 1000)
        )

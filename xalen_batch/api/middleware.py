"""What surrounds every request: its id, one line in the log, what is left of its account's rate, and an answer even when the code fails."""

import asyncio
import math
import time
import uuid
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xalen_batch import log
from xalen_batch.api import errors, throttle
from xalen_batch.errors import Unavailable

logger = log.get(__name__)

# What a proxy in front of us would log for a client that went away.
CLIENT_CLOSED = 499
QUIET = frozenset({"/livez", "/readyz"})


class RequestContext:
    """Names each request, logs it once, and turns a crash into the envelope of a 500, a stop of the server into that of a 503."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex}"
        status = CLIENT_CLOSED

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        started = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, send_named)
            except asyncio.CancelledError:
                # The server stops, and this request has had its grace.
                if status == CLIENT_CLOSED:
                    stopping = Unavailable("The server is stopping. Send the request again in a few seconds.")
                    await errors.answer(Request(scope), stopping)(scope, receive, send_named)
            except Exception as error:
                logger.error("api.crashed", method=scope["method"], route=_route(scope), **log.cause(error))
                # Once an answer has begun, all that is left is to break the connection off.
                if status == CLIENT_CLOSED:
                    await errors.answer(Request(scope), error)(scope, receive, send_named)
            finally:
                write = logger.debug if scope["path"] in QUIET else logger.info
                write(
                    "api.request",
                    method=scope["method"],
                    route=_route(scope),
                    status=status,
                    ms=round((time.perf_counter() - started) * 1000, 1),
                )


class RateHeaders:
    """Puts what was drawn for a request into its answer's headers, as OpenAI names them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        draws = throttle.begin()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                for draw in draws:
                    headers = MutableHeaders(scope=message)
                    headers["x-ratelimit-limit-requests"] = str(draw.limit)
                    headers["x-ratelimit-remaining-requests"] = str(draw.remaining)
                    headers["x-ratelimit-reset-requests"] = f"{math.ceil(draw.reset * 1000)}ms"
            await send(message)

        await self.app(scope, receive, send_with_headers)


class BodyLimit:
    """Refuses bodies of more bytes than `most` says for a method and path (None is no limit), and compressed ones, which could become more."""

    def __init__(self, app: ASGIApp, *, most: Callable[[str, str], int | None]) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self.most(scope["method"], scope["path"])
        encoding = Headers(scope=scope).get("content-encoding", "identity")
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            # An HTTPException passes through the framework's own handling of broken bodies.
            if encoding.lower() != "identity":
                raise HTTPException(415, f"Content-Encoding {encoding[:40]!r} is not supported.")
            message = await receive()
            received += len(message.get("body", b""))
            if most is not None and received > most:
                raise HTTPException(413, f"The request body has more than {most:,} bytes, the most for this endpoint.")
            return message

        await self.app(scope, receive_bounded, send)


def _route(scope: Scope) -> str:
    """The route's template: what was asked for without anybody's ids."""
    return getattr(scope.get("route"), "path", "unknown")

"""What surrounds every request: path normalisation, the request id, one log line, rate limit
headers, and a 500 in the envelope after a crash.
"""

import asyncio
import math
import time
import uuid

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xalen_batch import log
from xalen_batch.api import deps, errors
from xalen_batch.api.http import budget, paths
from xalen_batch.api.http.responses import STREAM_HOLDS
from xalen_batch.errors import Unavailable
from xalen_batch.ratelimit import account

logger = log.get(__name__)

# What a proxy in front of us would log for a client that went away.
CLIENT_CLOSED = 499
# Most bytes that are handed to a connection at once.
SLICE = 256 * 1024
QUIET = frozenset({"/livez", "/readyz"})


class Paths:
    """Removes repeated and trailing slashes from the path, and runs HEAD as the GET whose body the
    server does not send.

    Outermost, so that the log, the admission of bodies and the routes all see the same path.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            method = scope["method"]
            # A copy: the server reads HEAD in its own scope, and sends no body for it.
            scope = {
                **scope,
                "path": paths.normal(scope["path"]),
                "method": "GET" if method == "HEAD" else method,
                paths.SENT_METHOD: method,
            }
        await self.app(scope, receive, send)


class RequestContext:
    """Names each request, logs it once, and turns a crash into the envelope of a 500, a stop of the
    server into that of a 503.
    """

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
                    stopping = Unavailable(
                        "The server is stopping. Send the request again in a few seconds."
                    )
                    await errors.answer(Request(scope), stopping)(scope, receive, send_named)
            except Exception as error:
                logger.error(
                    "api.crashed",
                    method=paths.method(scope),
                    route=_route(scope),
                    **log.cause(error),
                )
                # Once an answer has begun, all that is left is to break the connection off.
                if status == CLIENT_CLOSED:
                    await errors.answer(Request(scope), error)(scope, receive, send_named)
            finally:
                write = logger.debug if scope["path"] in QUIET else logger.info
                write(
                    "api.request",
                    method=paths.method(scope),
                    route=_route(scope),
                    status=status,
                    ms=round((time.perf_counter() - started) * 1000, 1),
                    **deps.identity_of(scope),
                )


class RateHeaders:
    """Puts what was drawn for a request into its answer's headers, as OpenAI names them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        draws = account.begin()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                for draw in draws:
                    headers = MutableHeaders(scope=message)
                    headers["x-ratelimit-limit-requests"] = str(draw.limit)
                    headers["x-ratelimit-remaining-requests"] = str(draw.remaining)
                    headers["x-ratelimit-reset-requests"] = f"{math.ceil(draw.reset * 1000)}ms"
            await send(message)

        await self.app(scope, receive, send_with_headers)


class AnswerSlices:
    """Hands long answers to the connection a slice at a time, each when the client has taken those
    before.

    The connection then holds one slice; the answer itself is in its account's budget until its last
    slice has left.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_slices(message: Message) -> None:
            body = message.get("body", b"")
            if len(body) <= SLICE:
                await send(message)
                return
            is_last = not message.get("more_body", False)
            owner = deps.caller_of(scope)
            # A stream has counted for its pieces already.
            held = len(body) if is_last else max(0, len(body) - STREAM_HOLDS)
            budget.answers.add(owner, held)
            try:
                for start in range(0, len(body), SLICE):
                    end = start + SLICE
                    await send(
                        {
                            **message,
                            "body": bytes(body[start:end]),
                            "more_body": end < len(body) or not is_last,
                        }
                    )
            finally:
                budget.answers.give_back(owner, held)

        await self.app(scope, receive, send_slices)


def _route(scope: Scope) -> str:
    """The route's template: what was asked for without anybody's ids."""
    return getattr(scope.get("route"), "path", "unknown")

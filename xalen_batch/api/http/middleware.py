"""Middleware around every request: one spelling, request id, one log line, rate limit headers, and
the error envelope of a 500 after an unexpected exception.
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
from xalen_batch.api.anthropic import errors as anthropic
from xalen_batch.api.http import budget, credentials, paths
from xalen_batch.api.http.responses import SLICE_BYTES, STREAM_BYTES
from xalen_batch.errors import Unavailable
from xalen_batch.metrics import counted
from xalen_batch.ratelimit import account

logger = log.get(__name__)

# The status that nginx logs for a client that closed the connection; nothing is sent.
CLIENT_CLOSED = 499
# Logged at level debug.
PROBES = frozenset({"/livez", "/readyz"})


class Paths:
    """Gives the routes one spelling of each request: one path, GET for HEAD, a Bearer key.

    It removes repeated and trailing slashes, and Azure's prefix. The server omits the body for
    HEAD. Outermost, so that the log, the admission of bodies and the routes see the same path.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            method = scope["method"]
            path, deployment = paths.of_azure(paths.normal(scope["path"]))
            # A copy: the server omits the body because its own scope still says HEAD.
            scope = {
                **scope,
                "path": path,
                "method": "GET" if method == "HEAD" else method,
                "headers": credentials.as_bearer(scope["headers"]),
                paths.SENT_METHOD: method,
                paths.DEPLOYMENT: deployment,
            }
        await self.app(scope, receive, send)


class RequestContext:
    """Gives each request an id and logs it once.

    Answers an unexpected exception with a 500, and a stop of the server with a 503, both in the
    error envelope.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = scope[paths.REQUEST_ID] = f"req_{uuid.uuid4().hex}"
        is_anthropics = anthropic.speaks(scope["path"])
        status = CLIENT_CLOSED

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if is_anthropics:
                    headers["request-id"] = request_id
            await send(message)

        started = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, send_named)
            except asyncio.CancelledError:
                # The server stops, and the grace period of this request is over.
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
                # After the start of an answer its status is sent; the connection just breaks off.
                if status == CLIENT_CLOSED:
                    await errors.answer(Request(scope), error)(scope, receive, send_named)
            finally:
                seconds, route = time.perf_counter() - started, _route(scope)
                method = paths.method(scope)
                requests, durations = counted.http(scope["method"], route, status)
                requests.inc()
                durations.observe(seconds)
                write = logger.debug if scope["path"] in PROBES else logger.info
                write(
                    "api.request",
                    method=method,
                    route=route,
                    status=status,
                    ms=round(seconds * 1000, 1),
                    **deps.identity_of(scope),
                )


class RateHeaders:
    """Adds the state of the rate limits that a request was drawn from, in OpenAI's headers."""

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
    """Back-pressure for long answers: sends each slice after the client has taken those before.

    The connection then buffers one slice. The whole answer counts in its account's budget until the
    last slice has left. A view is a slice that its stream has cut.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_slices(message: Message) -> None:
            body = message.get("body", b"")
            if len(body) <= SLICE_BYTES or isinstance(body, memoryview):
                await send(message)
                return
            is_last = not message.get("more_body", False)
            owner = deps.caller_of(scope)
            # A stream has reserved STREAM_BYTES for its pieces already.
            held = len(body) if is_last else max(0, len(body) - STREAM_BYTES)
            budget.answers.add(owner, held)
            try:
                for start in range(0, len(body), SLICE_BYTES):
                    end = start + SLICE_BYTES
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
    """The route's template, for the log: it has no ids."""
    return getattr(scope.get("route"), "path", "unknown")

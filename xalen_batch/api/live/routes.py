"""POST /v1/chat/completions and the other endpoints of models, as live calls."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.responses import StreamingResponse

from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Scope
from xalen_batch.api import deps, description
from xalen_batch.api.http import paths
from xalen_batch.api.http.middleware import CLIENT_CLOSED
from xalen_batch.api.live import background, callers, queued, requests
from xalen_batch.api.live.calls import Calls, ClientGone, unless
from xalen_batch.api.live.requests import LiveCall
from xalen_batch.backends.contract import Refused
from xalen_batch.batches import batches
from xalen_batch.config import settings
from xalen_batch.endpoints.names import ENDPOINTS, RESPONSES, Endpoint
from xalen_batch.errors import NotFound
from xalen_batch.states import QueuedCall

Run = Callable[[Request], Coroutine[Any, Any, Response]]


class BareRoute(APIRoute):
    """A route without FastAPI's parameters, whose handling costs as much CPU as checking a call."""

    def get_route_handler(self) -> Run:
        run: Run = self.endpoint
        return run


router = APIRouter(
    tags=["live calls"],
    route_class=BareRoute,
    responses=description.ERRORS,
    generate_unique_id_function=description.operation_id,
)
# Proxies pass each event on at once.
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
BODY: dict[str, Any] = {
    "security": [{"HTTPBearer": []}],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model"],
                    "properties": {
                        "model": {"type": "string"},
                        "service_tier": {
                            "type": "string",
                            "description": "`flex`: a queued line, at the price of a batch.",
                        },
                    },
                    "additionalProperties": True,
                }
            }
        },
    },
}


def _route(endpoint: Endpoint) -> Run:
    @deps.needs(Scope.SUBMIT)
    async def run(request: Request) -> Response:
        if settings().live == "off":
            raise NotFound(_as_batch(endpoint), code="live_calls_off")
        known = await callers.admit(request)
        deployment = request.scope.get(paths.DEPLOYMENT)
        call = requests.checked(known, endpoint, await request.body(), deployment=deployment)
        calls: Calls = request.state.calls
        if call.kind is QueuedCall.BACKGROUND:
            return await _in_background(call)
        if call.kind is QueuedCall.FLEX:
            return await _flex(calls, call, request)
        if call.is_streamed:
            return await _streamed(calls, call)
        try:
            answer = await calls.run(call, ids.new().hex, request.receive)
        except ClientGone:
            # Nobody reads this answer.
            return Response(status_code=CLIENT_CLOSED)
        return Response(answer.body, answer.status, media_type="application/json")

    return run


async def _in_background(call: LiveCall) -> Response:
    batch_id = await asyncio.to_thread(queued.enqueue, call, QueuedCall.BACKGROUND)
    return await asyncio.to_thread(_begun, call, batch_id)


def _begun(call: LiveCall, batch_id: UUID) -> Response:
    with db.reading() as session:
        batch = batches.get(session, call.caller, ids.render("batch", batch_id))
        return queued.rendered(background.shown(session, batch))


async def _flex(calls: Calls, call: LiveCall, request: Request) -> Response:
    batch_id = await asyncio.to_thread(queued.enqueue, call, QueuedCall.FLEX)
    try:
        async with asyncio.timeout(settings().flex_wait):
            await unless(request.receive, calls.waiting.end(batch_id))
    except ClientGone:
        await asyncio.to_thread(queued.give_up, call.caller, batch_id)
        return Response(status_code=CLIENT_CLOSED)
    except TimeoutError:
        raise queued.still_queued(batch_id) from None
    status, body = await asyncio.to_thread(queued.answer, call.caller, batch_id)
    if status < 300:
        body["service_tier"] = requests.FLEX
        if call.endpoint == RESPONSES:
            body["id"] = ids.render("resp", batch_id)
    return queued.rendered(body, status)


def _as_batch(endpoint: Endpoint) -> str:
    """The remedy for a live call to a server that only runs batches."""
    line = (
        f'{{"custom_id": "1", "method": "POST", "url": "{endpoint}", "body": <the body of this'
        " request>}"
    )
    return (
        f"This server runs batches, not live calls. Write the line {line} to a file,"
        " requests.jsonl, and run it: `xalen-batch run requests.jsonl`, or POST /v1/files and"
        " /v1/batches."
    )


async def _streamed(calls: Calls, call: LiveCall) -> Response:
    opened = AsyncExitStack()
    answer = await opened.enter_async_context(calls.stream(call, ids.new().hex))
    if isinstance(answer, Refused):
        await opened.aclose()
        return Response(answer.body, answer.status, media_type="application/json")

    async def body() -> AsyncIterator[bytes]:
        # Closed as well when the client has gone, which cancels this generator.
        async with opened:
            async for part in answer:
                yield part

    return StreamingResponse(body(), headers=STREAM_HEADERS, media_type="text/event-stream")


for _endpoint in ENDPOINTS:
    router.add_api_route(
        _endpoint,
        _route(_endpoint),
        methods=["POST"],
        name=f"create_{_endpoint.removeprefix('/v1/').replace('/', '_')}",
        openapi_extra=BODY,
        response_model=None,
    )

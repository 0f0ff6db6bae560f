"""POST /v1/chat/completions and the other endpoints of models, as live calls."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.responses import StreamingResponse

from xalen_batch import ids
from xalen_batch.accounts.accounts import Scope
from xalen_batch.api import deps
from xalen_batch.api.live import callers, requests
from xalen_batch.api.live.calls import Calls, ClientGone
from xalen_batch.api.live.requests import LiveCall
from xalen_batch.backends.contract import Refused
from xalen_batch.endpoints.names import ENDPOINTS, Endpoint
from xalen_batch.errors import InvalidRequest

Run = Callable[[Request], Coroutine[Any, Any, Response]]


class BareRoute(APIRoute):
    """A route without FastAPI's parameters, whose handling costs as much CPU as checking a call."""

    def get_route_handler(self) -> Run:
        run: Run = self.endpoint
        return run


router = APIRouter(tags=["live calls"], route_class=BareRoute)
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
        known = await callers.admit(request)
        call = requests.checked(known, endpoint, await request.body())
        if call.is_queued:
            raise InvalidRequest("Not yet.")
        calls: Calls = request.state.calls
        if call.is_streamed:
            return await _streamed(calls, call)
        try:
            answer = await calls.run(call, ids.new().hex, request.receive())
        except ClientGone:
            # Nobody reads this answer.
            return Response(status_code=499)
        return Response(answer.body, answer.status, media_type="application/json")

    return run


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

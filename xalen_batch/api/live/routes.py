"""POST /v1/chat/completions and the other endpoints of models, as live calls."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from xalen_batch import ids
from xalen_batch.accounts.accounts import Scope
from xalen_batch.api import deps
from xalen_batch.api.live import callers, requests
from xalen_batch.api.live.calls import Calls, ClientGone
from xalen_batch.endpoints.names import ENDPOINTS, Endpoint
from xalen_batch.errors import InvalidRequest

router = APIRouter(tags=["live calls"])
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


def _route(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    @deps.needs(Scope.SUBMIT)
    async def run(request: Request) -> Response:
        known = await callers.admit(request)
        call = requests.checked(known, endpoint, await request.body())
        if call.is_queued:
            raise InvalidRequest("Not yet.")
        calls: Calls = request.state.calls
        try:
            answer = await calls.run(call, ids.new().hex, request.receive())
        except ClientGone:
            # Nobody reads this answer.
            return Response(status_code=499)
        return Response(answer.body, answer.status, media_type="application/json")

    return run


for _endpoint in ENDPOINTS:
    router.add_api_route(
        _endpoint,
        _route(_endpoint),
        methods=["POST"],
        name=f"create_{_endpoint.removeprefix('/v1/').replace('/', '_')}",
        openapi_extra=BODY,
        response_model=None,
    )

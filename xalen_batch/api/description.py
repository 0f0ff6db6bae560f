"""What the API's description says beside the routes' own shapes: operation ids, servers, errors,
and content that is no JSON.
"""

from typing import Any

from fastapi.routing import APIRoute

from xalen_batch.api.schemas import ErrorObject

# Every error of every route, with what a client does about it. The range stands for those of HTTP
# itself, such as 405 and 413.
_ERRORS: dict[int | str, str] = {
    400: "Something in the request is wrong; `param` names it.",
    401: "There is no valid API key.",
    403: "The key lacks the scope that the route needs.",
    404: "No such object.",
    429: (
        "A quota is full, or requests come too fast; `retry-after` says when to send it again;"
        " `x-should-retry: false`, that no wait helps."
    ),
    "4XX": "Another error of the request.",
    500: "A fault of the server, which is logged.",
    503: "A store of the server is away; `retry-after` says when to send it again.",
    "5XX": "Another failure of the server.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorObject, "description": description}
    for status, description in _ERRORS.items()
}
# A path on the host that the description was fetched from.
SERVERS = [{"url": "/", "description": "This server"}]
LICENSE = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
# Routes that need no key.
PUBLIC: dict[str, Any] = {"security": []}


def operation_id(route: APIRoute) -> str:
    """The name of a route's function as clients in most languages write it: `create_batch` is
    `createBatch`.
    """
    first, *rest = route.name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def content(description: str) -> dict[int | str, dict[str, Any]]:
    """The 200 of a route that sends bytes as they are."""
    return {
        200: {
            "description": description,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        }
    }

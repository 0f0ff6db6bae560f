"""Parts of the OpenAPI description that are not in the routes: operation ids, servers, errors, and
binary content.
"""

from typing import Any

from fastapi.routing import APIRoute

from xalen_batch.api.schemas import ErrorObject

# The errors of every route, with their remedies. A range covers the errors of HTTP itself, such as
# 405 and 413.
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
# Relative to the URL of the description.
SERVERS = [{"url": "/", "description": "This server"}]
LICENSE = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
# Routes that need no key.
PUBLIC: dict[str, Any] = {"security": []}


def operation_id(route: APIRoute) -> str:
    """The name of a route's function in camel case: `createBatch` for `create_batch`."""
    first, *rest = route.name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def downloaded(description: str) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that sends binary content, besides its errors."""
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {
        200: {"description": description, "content": content},
        206: {"description": "The range that `Range` asks for.", "content": content},
        304: {"description": "The content has the entity tag that `If-None-Match` names."},
    }


def csv(description: str) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that sends CSV, besides its errors."""
    return {
        200: {"description": description, "content": {"text/csv": {"schema": {"type": "string"}}}}
    }


def document(description: str) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that sends a PDF, besides its errors."""
    content = {"application/pdf": {"schema": {"type": "string", "format": "binary"}}}
    return {200: {"description": description, "content": content}}

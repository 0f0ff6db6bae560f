"""Errors in the shape of Anthropic's API, on its paths."""

from typing import Any

from xalen_batch.errors import XalenError

PREFIX = "/v1/messages"
# Error types by HTTP status; those of OpenAI's shape have other names.
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


def speaks(path: str) -> bool:
    """Whether clients of Anthropic's API call this path, also with a wrong base URL."""
    return PREFIX in path


def type_of(status: int) -> str:
    """The type of an error with this HTTP status."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def body(error: XalenError, request_id: str | None) -> dict[str, Any]:
    """The JSON body of an error. It has no field for the parameter, which our messages name."""
    return {
        "type": "error",
        "error": {"type": type_of(error.status), "message": error.message},
        "request_id": request_id,
    }

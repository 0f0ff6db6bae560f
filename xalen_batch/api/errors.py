"""Renders every error in the envelope that OpenAI's clients parse."""

import json
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, RootModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from xalen_batch import db, fields, log, storage
from xalen_batch.api import deps
from xalen_batch.api.anthropic import errors as anthropic
from xalen_batch.api.http import paths
from xalen_batch.errors import (
    QUOTED_CHARS,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RequestTimeout,
    ServerError,
    StorageFull,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
    XalenError,
)
from xalen_batch.schedules.definition import Definition

logger = log.get(__name__)

# Errors of a database or of object storage that is unreachable, overloaded or full.
UNAVAILABLE = (*db.UNAVAILABLE, *storage.UNAVAILABLE)
# Sentences for types of pydantic's errors whose own text names Python's types or parser.
AN_OBJECT = "should be an object"
A_TIME = "should be a time: ISO 8601, such as 2026-11-01T18:00:00Z, or Unix seconds"
FORMS = {
    "dict_type": AN_OBJECT,
    "model_type": AN_OBJECT,
    "model_attributes_type": AN_OBJECT,
    "datetime_type": A_TIME,
    "datetime_parsing": A_TIME,
    "datetime_from_date_parsing": A_TIME,
    "int_parsing": "should be an integer",
    "bool_parsing": "should be true or false",
}
EXPECTED: tuple[type[Exception], ...] = (
    XalenError,
    RequestValidationError,
    HTTPException,
    ClientDisconnect,
    *UNAVAILABLE,
)


class BodyRefused(HTTPException):
    """An error of ours while a body is read: the framework replaces other exceptions there."""

    def __init__(self, error: XalenError) -> None:
        super().__init__(error.status, error.message)
        self.error = error


def install(app: FastAPI) -> None:
    """Register `answer` for expected errors; the middleware calls it for the unexpected ones."""
    for kind in EXPECTED:
        app.add_exception_handler(kind, answer)


def answer(request: Request, error: Exception) -> Response:
    """The response to an error: envelope, status and headers."""
    known = translate(request, error)
    headers = dict(getattr(error, "headers", None) or {})
    if isinstance(known, MethodNotAllowed):
        # The framework lists only the methods of the first route of this path.
        headers["Allow"] = ", ".join(paths.allowed(request))
    if isinstance(known, RequestTimeout):
        # The rest of this request may still arrive, and must not be parsed as the next one.
        headers["connection"] = "close"
    if isinstance(known, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    if known.retry_after is not None:
        headers["retry-after"] = str(math.ceil(known.retry_after))
        # OpenAI's clients prefer this header.
        headers["retry-after-ms"] = str(math.ceil(known.retry_after * 1000))
    if known.should_retry is not None:
        headers["x-should-retry"] = str(known.should_retry).lower()
    content: Mapping[str, Any] = known.body()
    if anthropic.speaks(request.url.path):
        content = anthropic.body(known, request.scope.get(paths.REQUEST_ID))
    # ASCII, because a quoted value may hold a lone surrogate, which UTF-8 cannot encode.
    return Response(json.dumps(content), known.status, headers, "application/json")


def translate(request: Request, error: Exception) -> XalenError:
    """The XalenError for any exception; that of an unexpected one is a plain 500."""
    match error:
        case XalenError():
            return error
        case BodyRefused():
            return error.error
        case RequestValidationError():
            return deps.refusal(request) or _invalid(error.errors(), _asked(request))
        case HTTPException(status_code=404 | 405):
            return _no_route(request, error)
        case HTTPException():
            return deps.refusal(request) or _unreadable(error)
        case ClientDisconnect():
            return InvalidRequest("The connection was closed before the request was complete.")
        case _ if isinstance(error, storage.UNAVAILABLE) and storage.is_full(error):
            logger.error("api.storage_full")
            return StorageFull(
                "There is no room left to store this. Nothing of it was kept: send it again later,"
                " or ask whoever runs the server."
            )
        case _ if isinstance(error, db.UNAVAILABLE) and db.trouble(error) is db.Trouble.CONFLICT:
            logger.warning(
                "api.unavailable", error=type(error).__name__, reason=db.Trouble.CONFLICT
            )
            return Unavailable(
                "Other requests were changing the same objects, and nothing was changed by this"
                " one. Send it again."
            )
        case _ if isinstance(error, UNAVAILABLE):
            reason = (
                db.trouble(error) if isinstance(error, db.UNAVAILABLE) else "storage.unreachable"
            )
            logger.warning("api.unavailable", error=type(error).__name__, reason=reason)
            return Unavailable(
                "The service cannot reach one of its stores right now. Send the request again in a"
                " few seconds."
            )
    return ServerError(
        "Something failed on our side, and it has been logged. Send the request again; if it keeps"
        " failing, report its x-request-id."
    )


def _no_route(request: Request, error: HTTPException) -> XalenError:
    asked = f"{paths.method(request.scope)} {request.url.path[:QUOTED_CHARS]}"
    if error.status_code == 404:
        return NotFound(f"Unknown request URL: {asked}. {paths.hint(request)}", code="unknown_url")
    return MethodNotAllowed(
        f"Method not allowed: {asked}. Use {' or '.join(paths.allowed(request))}."
    )


def _unreadable(error: HTTPException) -> XalenError:
    """The error of a body that was refused before it was parsed."""
    if error.status_code == 408:
        return RequestTimeout(error.detail)
    if error.status_code == 413:
        return TooLarge(
            f"{error.detail} Send less at once, or upload a file.", code="request_too_large"
        )
    if error.status_code == 415:
        return UnsupportedMediaType(
            f"{error.detail} Send the body as it is, without Content-Encoding.",
            param="Content-Encoding",
        )
    return InvalidRequest(
        "The body cannot be read. Send one JSON object with `content-type: application/json`."
    )


def _asked(request: Request) -> type[BaseModel]:
    """The model of a request's body; Definition for a change of a schedule, whose body is free."""
    field = getattr(request.scope.get("route"), "body_field", None)
    shape = field and field.field_info.annotation
    if not isinstance(shape, type) or not issubclass(shape, BaseModel):
        return Definition
    return Definition if issubclass(shape, RootModel) else shape


def _invalid(errors: Sequence[Mapping[str, Any]], shape: type[BaseModel]) -> InvalidRequest:
    """The most useful of a body's errors, with its field, value and expected form.

    An unknown field comes first: it may be the misspelt name of a field that is reported missing.
    """
    error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    where = [str(step) for step in error["loc"][1:]]
    param = ".".join(where)[: 2 * QUOTED_CHARS] or None
    if error["type"] == "json_invalid":
        reason = error["ctx"]["error"]
        return InvalidRequest(
            f"The body is not valid JSON: {reason} at character {where[0]}. Send one JSON object.",
            code="invalid_json",
        )
    if param is None:
        return InvalidRequest(
            "The body must be one JSON object, sent with `content-type: application/json`."
        )
    if error["type"] == "missing":
        return InvalidRequest(
            f"Missing required parameter: `{param}`. Add it to the request.",
            param=param,
            code="missing_required_parameter",
        )
    if error["type"] == "extra_forbidden":
        message = (
            f"Unknown parameter: `{param[:QUOTED_CHARS]}`."
            f" {_instead(where[-1][:QUOTED_CHARS], shape)}"
        )
        return InvalidRequest(message, param=param, code="unknown_parameter")
    message = FORMS.get(error["type"]) or (
        str(error["msg"])
        .removeprefix("Value error, ")
        .replace("Input should", "should")
        .replace("String should", "should")
        .replace("List should", "should")
        .replace(" after validation", "")
    )
    return InvalidRequest(
        f"Invalid `{param}`: {message}; got {_shown(error['input'])}.",
        param=param,
        code="invalid_value",
    )


def _instead(name: str, shape: type[BaseModel]) -> str:
    """The remedy for an unknown field: similar names, or to remove it."""
    known = list(fields.paths(shape))
    close = get_close_matches(name, [path.rpartition(".")[2] for path in known], n=2, cutoff=0.7)
    meant = " or ".join(f"`{path}`" for path in known if path.rpartition(".")[2] in close)
    return f"Did you mean {meant}?" if meant else "Remove it; /docs says what there is."


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= QUOTED_CHARS else f"{text[:QUOTED_CHARS]}…"

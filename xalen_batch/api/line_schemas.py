"""JSON Schemas of the lines of input files and of results, made from the forms that check them.

A schema tells the form. That a model exists, that a custom id is unique, and that a request fits
the context window, only validation can tell.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
import orjson
from fastapi import FastAPI, Request, Response
from msgspec import Meta, Struct

from xalen_batch.api.http.downloads import constant
from xalen_batch.endpoints.chat import ROLES, ChatRequest
from xalen_batch.endpoints.completions import CompletionRequest
from xalen_batch.endpoints.embeddings import EmbeddingRequest
from xalen_batch.endpoints.form import OURS
from xalen_batch.endpoints.names import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    ENDPOINTS,
    RERANK,
    RESPONSES,
    Endpoint,
    spellings,
)
from xalen_batch.endpoints.rerank import RerankRequest
from xalen_batch.endpoints.responses import ResponseRequest
from xalen_batch.validation.fast_path import MAX_CUSTOM_ID

Schema = dict[str, Any]

FOLDER = "/schemas"
MEDIA_TYPE = "application/schema+json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
FORMS: dict[Endpoint, type[Struct]] = {
    CHAT: ChatRequest,
    RESPONSES: ResponseRequest,
    COMPLETIONS: CompletionRequest,
    EMBEDDINGS: EmbeddingRequest,
    RERANK: RerankRequest,
}
_CUSTOM_ID = Annotated[str, Meta(min_length=1, max_length=MAX_CUSTOM_ID, pattern="^[^\\x00]*$")]


class BatchLine(Struct):
    """A line of an input file: one request. Unknown fields of the body reach the model server."""

    custom_id: _CUSTOM_ID
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


class LineResponse(Struct):
    """The answer of the model server; a status from 200 to 299 is a success."""

    status_code: int
    request_id: str
    body: Any


class ResultError(Struct):
    """The reason for which a line has no answer."""

    code: str
    message: str


class ResultLine(Struct):
    """A line of an output or error file: one result."""

    id: str
    custom_id: Annotated[str, Meta(min_length=1)]
    response: LineResponse | None
    error: ResultError | None


@cache
def batch_line() -> Schema:
    """The schema of a line of an input file."""
    schema, parts = _schema(BatchLine, *FORMS.values())
    for form in FORMS.values():
        properties = parts[form.__name__]["properties"]
        properties.pop(OURS, None)
        # The docstrings of forms are about their Python attributes.
        parts[form.__name__].pop("description", None)
        if "stream" in properties:
            # A batch has no stream to send.
            properties["stream"] = {"enum": [False, None], "default": None}
    _complete_chat(parts)
    kept = parts["ResponseRequest"]["properties"]
    kept["background"] = {"enum": [False, None], "default": None}
    kept["previous_response_id"] = {"enum": ["", None], "default": None}
    kept["conversation"] = {"enum": ["", None], "default": None}
    line = parts["BatchLine"]
    line["properties"]["url"] = {
        "type": "string",
        "description": "The endpoint of the batch.",
        "pattern": _pattern([url for each in ENDPOINTS for url in spellings(each)]),
        "examples": list(ENDPOINTS),
    }
    line["allOf"] = [
        {
            "if": {"properties": {"url": {"pattern": _pattern(spellings(endpoint))}}},
            "then": {"properties": {"body": {"$ref": f"#/$defs/{form.__name__}"}}},
        }
        for endpoint, form in FORMS.items()
    ]
    return schema


@cache
def result_line() -> Schema:
    """The schema of a line of an output or error file."""
    schema, parts = _schema(ResultLine)
    parts["ResultLine"]["oneOf"] = [
        {"properties": {"response": {"type": "object"}, "error": {"type": "null"}}},
        {"properties": {"response": {"type": "null"}, "error": {"type": "object"}}},
    ]
    return schema


def install(app: FastAPI) -> None:
    """Add the schemas, which need no key."""
    made: dict[str, Callable[[], Schema]] = {"batch-line": batch_line, "result-line": result_line}
    for name, schema in made.items():
        path = f"{FOLDER}/{name}.json"
        app.get(path, name=name, include_in_schema=False)(_route(path, schema))


def _route(path: str, schema: Callable[[], Schema]) -> Callable[[Request], Response]:
    def shown(request: Request) -> Response:
        origin = str(request.base_url).rstrip("/")
        return constant(request, orjson.dumps({"$id": f"{origin}{path}", **schema()}), MEDIA_TYPE)

    return shown


def _schema(line: type[Struct], *forms: type[Struct]) -> tuple[Schema, Schema]:
    """The schema of a line, and its parts by their names. Both can be changed."""
    (shown, *_), parts = msgspec.json.schema_components(
        [line, *forms], ref_template="#/$defs/{name}"
    )
    return {"$schema": DIALECT, "title": line.__name__, **shown, "$defs": parts}, parts


def _complete_chat(parts: Schema) -> None:
    """Add to the schema of a chat what its form checks in code."""
    message, part = parts["Message"], parts["ContentPart"]
    message["properties"]["role"]["enum"] = list(ROLES)
    part["if"] = {"properties": {"type": {"const": "text"}}}
    part["then"] = {"required": ["text"], "properties": {"text": {"type": "string"}}}
    silent = [
        {"required": [name], "properties": {name: {"not": {"enum": [None, [], {}, ""]}}}}
        for name in ("tool_calls", "function_call", "refusal", "audio")
    ]
    message["anyOf"] = [
        {"required": ["content"], "properties": {"content": {"not": {"type": "null"}}}},
        {"properties": {"role": {"const": "function"}}},
        {"properties": {"role": {"const": "assistant"}}, "anyOf": silent},
    ]


def _pattern(urls: list[str]) -> str:
    return f"^({'|'.join(map(re.escape, urls))})/*$"

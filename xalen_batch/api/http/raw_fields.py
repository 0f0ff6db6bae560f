"""A JSON body of which one large field stays as it was sent.

FastAPI decodes a body on the event loop's thread, where 16 MiB of objects would delay every other
request and take ten times their bytes. Skipping a field takes milliseconds and no memory.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from xalen_batch.api import errors
from xalen_batch.config import settings
from xalen_batch.errors import InvalidRequest, TooLarge, XalenError

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class RawJson(bytes):
    """A field's value as the JSON that was sent: a list of objects, which is not decoded yet."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(_raw)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "array", "items": {"type": "object"}}


def _raw(value: object) -> RawJson:
    # Decoded already if the field's name was spelled with escapes.
    return value if isinstance(value, RawJson) else RawJson(json.dumps(value).encode())


def keeping(field: str) -> type[APIRoute]:
    """The class of a route whose body keeps `field` raw. The other fields are bounded as usual."""

    class _Request(Request):
        async def json(self) -> Any:
            body = await self.body()
            try:
                if f'"{field}"'.encode() in body:
                    return _decoded(body, field)
                _refuse_if_large(len(body), field)
            except XalenError as error:
                # The framework would replace any other kind by an error of its own.
                raise errors.BodyRefused(error) from None
            return await super().json()

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def run(request: Request) -> Response:
                return await handler(_Request(request.scope, request.receive))

            return run

    return Route


def _decoded(body: bytes, field: str) -> Any:
    try:
        found = _fields(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"The body is not valid JSON: {error}. Send one JSON object.", code="invalid_json"
        ) from None
    large = found.pop(field, None)
    _refuse_if_large(len(body) - len(large or b""), field)
    fields: dict[str, Any] = {name: json.loads(bytes(value)) for name, value in found.items()}
    if large is not None and bytes(large) != b"null":
        fields[field] = RawJson(large)
    return fields


def _refuse_if_large(size: int, field: str) -> None:
    most = settings().max_json_bytes
    if size > most:
        raise TooLarge(
            f"The request body has more than {most:,} bytes beside `{field}`.",
            code="request_too_large",
        )

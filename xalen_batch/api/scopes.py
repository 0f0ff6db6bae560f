"""Field-level scopes: a key without the scope of a field gets null in its place.

A field needs the scope of the route that shows it. All keys of an object stay present. The OpenAPI
description names the scope of each such field as `x-scope`.
"""

from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, ClassVar, TypeVar, get_args

import orjson
from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from xalen_batch.accounts.accounts import Scope

# The keywords of a JSON schema that are documentation.
WORDS = ("title", "description", "examples")


class Scoped(BaseModel):
    """An answer whose fields need the scope `read`, except those named here.

    `always`: fields without a scope of their own. `priced`: fields that need the scope `billing`.
    """

    always: ClassVar[frozenset[str]]
    priced: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def scope_of(cls, field: str) -> Scope | None:
        """The scope that a field needs; None if the scope of its route suffices."""
        if field in cls.priced:
            return Scope.BILLING
        return None if field in cls.always else Scope.READ

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, described in properties.items():
            if (scope := cls.scope_of(name)) is not None:
                properties[name] = _nullable(described) | {"x-scope": scope.value}
        return schema


def render(answer: BaseModel, scopes: Collection[str]) -> bytes:
    """An answer as JSON, with null in each field that a key with these scopes may not read."""
    if not _hides(type(answer), frozenset(scopes)):
        return answer.model_dump_json().encode()
    shown = answer.model_dump(mode="json")
    _hide(type(answer), shown, frozenset(scopes))
    return orjson.dumps(shown)


def render_stored(answer: bytes, kind: type[BaseModel], scopes: Collection[str]) -> bytes:
    """As `render`, for an answer of class `kind` that was stored as JSON.

    It may have been stored for a key with other scopes, or by an older version.
    """
    if not _hides(kind, frozenset(scopes)):
        return answer
    shown = orjson.loads(answer)
    _hide(kind, shown, frozenset(scopes))
    return orjson.dumps(shown)


def _hide(kind: type[BaseModel], shown: dict[str, Any], scopes: frozenset[str]) -> None:
    for name, field in kind.model_fields.items():
        if _is_hidden(kind, name, scopes):
            shown[name] = None
            continue
        for inner in _models(field.annotation):
            value = shown.get(name)
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    _hide(inner, part, scopes)


@cache
def _hides(kind: type[BaseModel], scopes: frozenset[str]) -> bool:
    """Whether an answer of this class has a field that these scopes may not read."""
    fields = kind.model_fields.items()
    return any(
        _is_hidden(kind, name, scopes)
        or any(_hides(inner, scopes) for inner in _models(field.annotation))
        for name, field in fields
    )


def _is_hidden(kind: type[BaseModel], field: str, scopes: frozenset[str]) -> bool:
    if not issubclass(kind, Scoped):
        return False
    scope = kind.scope_of(field)
    return scope is not None and scope not in scopes


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation such as `list[RunObject]` or `RunObject | None`.

    Raises TypeError for a type variable.
    """
    if isinstance(annotation, TypeVar):
        raise TypeError(
            f"{annotation} stands for any class: give the generic answer its class, as in"
            " ListObject[RunObject]."
        )
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _nullable(described: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema, extended by null; documentation keywords stay at its top level."""
    options = described.get("anyOf", [])
    if {"type": "null"} in options:
        return described
    words = {key: value for key, value in described.items() if key in WORDS}
    bare = {key: value for key, value in described.items() if key not in WORDS}
    return words | {"anyOf": [*(options or [bare]), {"type": "null"}]}

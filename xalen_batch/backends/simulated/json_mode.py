"""JSON mode: an object with the keys and types that the prompt spells out.

A prompt spells them out as a JSON Schema, as an example object, or as a list of keys. The values of
an example give the types: `0.9` is a number, `"low|high"` one of two strings, and the name of a
type is that type.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

import msgspec

from xalen_batch.backends.simulated.prompt import MOST_READ, Prompt
from xalen_batch.backends.simulated.type_hints import hinted, of_example, of_literal

DEEPEST = 8
# Braces at which an object may begin.
MOST_OPENINGS = 20
# Keywords of which an object that is a JSON Schema has one.
_OF_SCHEMAS = frozenset({"properties", "$ref", "anyOf", "allOf", "oneOf"})

_TOKEN = re.compile(
    r"\s*(?:(?P<mark>[{}\[\],:|])|\"(?P<double>(?:[^\"\\\n]|\\.)*)\"|'(?P<single>[^'\n]*)'"
    r"|(?P<bare>[^\s{}\[\],:|\"'][^{}\[\],:|\n\"']*))"
)
# A remark at the end of a line, but no address.
_REMARK = re.compile(r"(?<![:\w\"'])//[^\n]*")
_KEY = r"[\"'`]?\w{1,40}[\"'`]?(?:\s*\([^()\n]{1,80}\))?"
_LISTED = re.compile(
    rf"\b(?:keys?|fields?|properties)\b:?\s+((?:{_KEY}(?:,\s*(?:and\s+)?|\s+and\s+)){{0,60}}{_KEY})",
    re.I,
)
_LISTED_KEY = re.compile(r"[\"'`]?(\w{1,40})[\"'`]?(?:\s*\(([^()\n]{1,80})\))?")
_QUOTED = re.compile(r"[\"'`](\w{1,40})[\"'`]\s*(?::|\()\s*([^\n]{0,80})")
_BULLET = re.compile(
    r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]+[*`]{0,2}(\w{1,40})[*`]{0,2}[ \t]*[:(–—-][ \t]*([^\n]{1,80})",
    re.M,
)


def write(prompt: Prompt) -> str:
    """The object that the prompt asks for, as JSON."""
    # Not imported by plain chats.
    from xalen_batch.backends.simulated.schemas.errors import InvalidSchema, NoValue
    from xalen_batch.backends.simulated.schemas.schema import load

    wanted = schema_in(prompt.instructions) or schema_in(prompt.user[:MOST_READ]) or _ANSWER
    try:
        value = load(wanted).value(prompt)
    except (InvalidSchema, NoValue):
        # A schema of the prompt binds nobody.
        value = None
    if not isinstance(value, dict):
        value = {key: prompt.guess(key) for key in wanted.get("properties") or ("answer",)}
    return msgspec.json.encode(value).decode()


@lru_cache(maxsize=128)
def schema_in(text: str) -> dict[str, Any] | None:
    """The schema of the object that a text describes; None if it describes none."""
    for opening in islice(re.finditer("{", text), MOST_OPENINGS):
        start = opening.start()
        found = _schema_at(text, start) or _Example(text, start).schema()
        if found:
            return found
    properties = dict(_described(text))
    return _object_of(properties) if properties else None


def _object_of(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_ANSWER = _object_of({"answer": {}})


def _schema_at(text: str, start: int) -> dict[str, Any] | None:
    """The JSON Schema that begins here; None if another object does."""
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    is_schema = isinstance(value, dict) and not _OF_SCHEMAS.isdisjoint(value)
    return value if is_schema and isinstance(value.get("properties", {}), dict) else None


def _described(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The keys of a text without an example, with the schemas of their types."""
    for key, hint in _BULLET.findall(text):
        if schema := hinted(hint):
            yield key, schema
    for key, hint in _QUOTED.findall(text):
        yield key, hinted(hint)
    for keys in _LISTED.findall(text):
        for key, hint in _LISTED_KEY.findall(keys):
            if key != "and":
                yield key, hinted(hint)


class _NoExample(Exception):
    """The text at this place is no example of an object."""


class _Example:
    """Reads an object as people write it in prompts: types for values, `|` between alternatives."""

    def __init__(self, text: str, start: int) -> None:
        self._tokens = _TOKEN.finditer(_REMARK.sub("", text[start:]))
        self._token: re.Match[str] | None = None
        self._next()

    def schema(self) -> dict[str, Any] | None:
        """The schema of the object that the prompt asks for, or None."""
        try:
            found = self._value(0)
        except _NoExample:
            return None
        return found if found.get("properties") else None

    def _next(self) -> None:
        self._token = next(self._tokens, None)

    def _takes(self, mark: str) -> bool:
        """Whether the next token is this mark, which is then read."""
        is_here = self._token is not None and self._token["mark"] == mark
        if is_here:
            self._next()
        return is_here

    def _value(self, depth: int) -> dict[str, Any]:
        if depth > DEEPEST or self._token is None:
            raise _NoExample
        if self._takes("{"):
            return self._object(depth)
        if self._takes("["):
            return self._array(depth)
        return self._scalar()

    def _object(self, depth: int) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        while not self._takes("}"):
            token = self._token
            if token is None or token["mark"]:
                raise _NoExample
            key = token["double"] or token["single"] or (token["bare"] or "").strip()
            self._next()
            if self._takes(":"):
                properties[key] = self._value(depth + 1)
            elif key.strip(". …"):
                raise _NoExample
            self._skip_to_end_of_value()
        return _object_of(properties)

    def _skip_to_end_of_value(self) -> None:
        """Skip a comma, and a remark before it."""
        while not self._takes(","):
            if self._token is None or self._token["mark"] in ("{", "[", "]"):
                raise _NoExample
            if self._token["mark"] == "}":
                return
            self._next()

    def _array(self, depth: int) -> dict[str, Any]:
        items = {} if self._token and self._token["mark"] == "]" else self._value(depth + 1)
        while not self._takes("]"):
            if self._token is None or self._token["mark"] == "}":
                raise _NoExample
            if self._takes("{"):
                self._object(depth + 1)
            else:
                self._next()
        return {"type": "array", "items": items}

    def _scalar(self) -> dict[str, Any]:
        options: list[str] = []
        schema: dict[str, Any] = {}
        while True:
            token = self._token
            if token is None or token["mark"]:
                raise _NoExample
            text = token["double"] if token["double"] is not None else token["single"]
            is_quoted = text is not None
            text = (token["bare"] if text is None else text).strip()
            self._next()
            options.append(text)
            if not schema:
                schema = of_example(text) if is_quoted else of_literal(text)
            if not self._takes("|"):
                break
        if len(options) > 1:
            schema = of_example("|".join(options))
        # `string[]`
        return self._array_of(schema) if self._takes("[") else schema

    def _array_of(self, items: dict[str, Any]) -> dict[str, Any]:
        if not self._takes("]"):
            raise _NoExample
        return {"type": "array", "items": items}

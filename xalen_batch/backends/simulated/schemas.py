"""Values that fit a simple JSON schema: constants, enums, scalars with limits, arrays, objects,
`$ref`, the first of alternatives.
"""

from collections.abc import Mapping
from typing import Any

from xalen_batch.backends.simulated.prompt import Prompt

DEEPEST = 12
# In one answer: a schema that refers to itself several times would grow without end.
MOST_VALUES = 500
LONGEST_TEXT = 1_000


class Filling:
    """Makes a value that fits a schema. `value` raises ValueError for an invalid schema."""

    def __init__(self, prompt: Prompt, schema: Any) -> None:
        self._prompt = prompt
        self._root = schema
        self._left = MOST_VALUES

    def value(self) -> Any:
        try:
            return self._value(self._root, "", 0)
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError("The JSON schema is not valid.") from error

    def _value(self, schema: Any, key: str, depth: int) -> Any:
        self._left -= 1
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._choice(schema["enum"])
        kind = schema.get("type") or ("object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        if kind == "object":
            return self._object(schema.get("properties") or {}, depth)
        if kind == "array":
            size = max(1, schema.get("minItems") or 1)
            return [
                self._value(schema.get("items"), key, depth + 1)
                for _ in range(min(size, self._left))
                if self._has_room(depth)
            ]
        return self._scalar(kind, schema, key)

    def _has_room(self, depth: int) -> bool:
        return self._left > 0 and depth < DEEPEST

    def _object(self, properties: Mapping[str, Any], depth: int) -> dict[str, Any]:
        return {
            name: self._value(part, name, depth + 1)
            for name, part in properties.items()
            if self._has_room(depth)
        }

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        """The schema behind `$ref` and the first alternative that is not null."""
        for _ in range(DEEPEST):
            if not isinstance(schema, Mapping):
                return {}
            options = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
            if options:
                schema = next(
                    (
                        one
                        for one in options
                        if not isinstance(one, Mapping) or one.get("type") != "null"
                    ),
                    {"type": "null"},
                )
            elif "$ref" in schema:
                schema = self._target(schema["$ref"])
            else:
                return schema
        return {}

    def _target(self, reference: str) -> Any:
        target = self._root
        for name in filter(None, reference.removeprefix("#").split("/")):
            target = target.get(name) if isinstance(target, Mapping) else None
        return target

    def _choice(self, options: list[Any]) -> Any:
        labels = tuple(option for option in options if isinstance(option, str))
        return (
            self._prompt.classified(labels) if labels else options[self._prompt.seed % len(options)]
        )

    def _scalar(self, kind: str, schema: Mapping[str, Any], key: str) -> Any:
        if kind == "null":
            return None
        if kind == "boolean":
            return bool(self._prompt.guess(f"is_{key}"))
        if kind in ("integer", "number"):
            low = schema.get("minimum", 0)
            number = low + (schema.get("maximum", low + 1) - low) * self._prompt.share
            return round(number) if kind == "integer" else round(number, 2)
        guess = self._prompt.guess(key)
        text = guess if isinstance(guess, str) else self._prompt.summary
        return text[: schema.get("maxLength")].ljust(
            min(schema.get("minLength", 0), LONGEST_TEXT), "."
        )

"""How deep the smallest value of a schema is, to end a recursion."""

from collections.abc import Mapping
from math import inf
from typing import Any

from xalen_batch.backends.simulated.schemas.budget import Budget
from xalen_batch.backends.simulated.schemas.references import References


class Heights:
    """The levels of objects and arrays that a schema's smallest value needs.

    Infinite for a schema that only endless values fit. An instance is used by one answer.
    """

    def __init__(self, references: References, budget: Budget) -> None:
        self._references = references
        self._budget = budget

    def of(self, schema: Any, path: frozenset[str] = frozenset()) -> float:
        """The height of a schema; `path` has the references that were followed to it."""
        self._budget.spend()
        if not isinstance(schema, Mapping) or "enum" in schema or "const" in schema:
            return 0
        parts = [self.of(part, path) for part in schema.get("allOf", ())]
        parts += [
            self._behind(schema[name], path) for name in ("$ref", "$dynamicRef") if name in schema
        ]
        parts += [
            min(self.of(option, path) for option in schema[name])
            for name in ("anyOf", "oneOf")
            if name in schema
        ]
        return max([*parts, self._own(schema, path)])

    def _behind(self, reference: str, path: frozenset[str]) -> float:
        if reference in path:
            return inf
        return self.of(self._references.target(reference), path | {reference})

    def _own(self, schema: Mapping[str, Any], path: frozenset[str]) -> float:
        properties = schema.get("properties", {})
        inner = [
            self.of(properties[name], path)
            for name in schema.get("required", ())
            if name in properties and _may_be(schema, "object")
        ]
        least = schema.get("minItems", 0)
        if least and _may_be(schema, "array"):
            first = schema.get("prefixItems", [])[: int(least)]
            inner += [self.of(item, path) for item in first]
            if len(first) < least and not isinstance(schema.get("items"), list):
                inner.append(self.of(schema.get("items", True), path))
        return 1 + max(inner) if inner else 0


def _may_be(schema: Mapping[str, Any], kind: str) -> bool:
    """Whether a value must be of a kind, as far as `type` says."""
    return schema.get("type", kind) in (kind, [kind])

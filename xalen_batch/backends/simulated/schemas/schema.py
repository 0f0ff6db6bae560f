"""A JSON Schema that was checked once, and makes valid values."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from xalen_batch.backends.simulated.prompt import Prompt
from xalen_batch.backends.simulated.schemas import checks
from xalen_batch.backends.simulated.schemas.budget import Budget
from xalen_batch.backends.simulated.schemas.errors import InvalidSchema, NoValue
from xalen_batch.backends.simulated.schemas.generate import Generator
from xalen_batch.backends.simulated.schemas.references import ADDRESS, References, addressed
from xalen_batch.backends.simulated.schemas.shape import Shape, own_shape

# Values that are tried if the first is not valid.
TRIES = 12
_DIALECTS = ("https://json-schema.org/", "http://json-schema.org/")
# Bytes of a schema that is kept for the next request.
LARGEST_KEPT = 64 * 1024


class Schema:
    """One schema. Any thread may call it: what it keeps is the same each time."""

    def __init__(self, raw: Any) -> None:
        """Raises InvalidSchema, with the reason, for a document that is no schema."""
        if not isinstance(raw, dict | bool):
            raise InvalidSchema(f"{_shown(raw)} is not of type 'object', 'boolean'.")
        if isinstance(raw, dict) and not str(raw.get("$schema", _DIALECTS[0])).startswith(
            _DIALECTS
        ):
            # Real servers ignore a dialect that they do not know.
            raw = {name: value for name, value in raw.items() if name != "$schema"}
        self._validator = checks.validator(raw)
        try:
            self.root = addressed(raw)
        except RecursionError as error:
            raise InvalidSchema("The schema is nested too deeply.") from error
        self.references = References(self.root)
        self._shapes: dict[int, Shape] = {}
        self._registry = checks.registry(ADDRESS, self.root)
        self._dialect = raw.get("$schema") if isinstance(raw, dict) else None

    def value(self, prompt: Prompt, budget: Budget | None = None) -> Any:
        """A valid value. Raises NoValue with the reason if none was found."""
        budget = budget or Budget()
        reason: Exception | None = None
        for attempt in range(TRIES):
            try:
                value = Generator(self, prompt, budget).value(attempt)
                self._validator.validate(value)
            except NoValue as error:
                reason = reason or error
                if budget.is_spent:
                    raise
            except RecursionError as error:
                raise NoValue("the schema is nested too deeply") from error
            except ValueError as error:
                reason = error
            else:
                return value
        if isinstance(reason, NoValue):
            raise reason
        raise NoValue(checks.reason_of(reason or NoValue("no value was found")))

    def own_shape(self, part: Mapping[str, Any]) -> Shape:
        """The shape of a part's own keywords, which is kept for the parts of the document."""
        shape = self._shapes.get(id(part))
        if shape is None:
            shape = own_shape(part)
            if id(part) in self.references.identities:
                self._shapes[id(part)] = shape
        return shape

    def validator(self, part: Any) -> checks.Validator:
        """The validator of a part of this schema, which may refer to the rest."""
        whole: dict[str, Any] = {"allOf": [part]}
        if self._dialect is not None:
            whole["$schema"] = self._dialect
        return checks.validator(whole, self._registry)


def load(raw: Any) -> Schema:
    """The schema of a request, which most lines of a batch share. Raises InvalidSchema."""
    encoded = msgspec.json.encode(raw)
    return _kept(encoded) if len(encoded) <= LARGEST_KEPT else Schema(raw)


@lru_cache(maxsize=64)
def _kept(encoded: bytes) -> Schema:
    return Schema(msgspec.json.decode(encoded))


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()[:80]

"""JSON Schema validation with jsonschema-rs, without network access and with bounded regexes."""

from functools import lru_cache
from typing import Any

import jsonschema_rs
import msgspec

from xalen_batch.backends.simulated.schemas.errors import InvalidSchema

# Steps and bytes after which a regex of the request is given up.
_REGEXES = jsonschema_rs.FancyRegexOptions(backtrack_limit=100_000, size_limit=10_000_000)
LONGEST_REASON = 300

Validator = jsonschema_rs.Validator


def validator(schema: Any, registry: jsonschema_rs.Registry | None = None) -> Validator:
    """Compile a schema, with its formats checked. Raises InvalidSchema."""
    try:
        return jsonschema_rs.validator_for(
            schema,
            validate_formats=True,
            retriever=_refuse,
            registry=registry,
            pattern_options=_REGEXES,
        )
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidSchema(reason_of(error)) from error


def registry(uri: str, schema: Any) -> jsonschema_rs.Registry:
    """A registry in which a schema has an address. Raises InvalidSchema."""
    try:
        return jsonschema_rs.Registry([(uri, schema)], retriever=_refuse)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidSchema(reason_of(error)) from error


def _refuse(uri: str) -> Any:
    raise ValueError(f"{uri} is not part of the schema.")


def reason_of(error: Exception) -> str:
    """The message of an error in one line, without the trace of the schema."""
    message = error.message if isinstance(error, jsonschema_rs.ValidationError) else str(error)
    line = message.splitlines()[0] if message else type(error).__name__
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 1] + "…"


def fits(checked: Validator, value: Any) -> bool:
    """Whether a value is valid; a regex that is given up counts as no match."""
    try:
        return checked.is_valid(value)
    except (ValueError, OverflowError):
        return False


@lru_cache(maxsize=256)
def text_validator(
    patterns: tuple[str, ...], formats: tuple[str, ...], least: int, most: int | None
) -> Validator:
    """The validator of a string's own keywords. Raises InvalidSchema."""
    each: list[dict[str, Any]] = [{"pattern": pattern} for pattern in patterns]
    each += [{"format": name} for name in formats]
    schema: dict[str, Any] = {"type": "string", "minLength": least, "allOf": each}
    if most is not None:
        schema["maxLength"] = most
    return validator(schema if each else {**schema, "allOf": [True]})


def matches(pattern: str, text: str) -> bool:
    """Whether a regex matches somewhere in a text, as `patternProperties` reads it."""
    return fits(text_validator((pattern,), (), 0, None), text)


def canonical(value: Any) -> bytes:
    """The same bytes for values that are equal in JSON: 1 and 1.0, objects in any order."""
    return msgspec.json.encode(_plain(value), order="sorted")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return value

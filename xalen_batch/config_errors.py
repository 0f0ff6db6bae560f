"""Errors of settings and of the model catalog, as sentences for the operator.

A sentence has the name of the field, its value, and the allowed values.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

LONGEST_VALUE = 80
# Bounds of numbers, as pydantic and annotated_types name them.
_BOUNDS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
PREFIX = "XALEN_"
# Variables of the command line, which are not settings.
CLI_VARIABLES = frozenset(
    {"XALEN_BASE_URL", "XALEN_API_KEY", "XALEN_DEBUG", "XALEN_WEBHOOK_SECRET"}
)

# Words for errors, by the beginning of their type in pydantic.
_IS_NOT = {
    "int_": "is not a whole number",
    "float_": "is not a number",
    "decimal_": "is not a number",
    "bool_": "is neither true nor false",
    "string_": "is not text",
    "path_": "is not a path",
    "tuple_": "is not a list",
    "list_": "is not a list",
    "model_": "is not a table",
    "dict_": "is not a table",
    "finite_": "is not a finite number",
}


def of_settings(error: ValidationError, shape: type[BaseModel]) -> str:
    """A sentence for each wrong variable: its value unless secret, the bounds and the default."""
    return " ".join(
        f"{PREFIX}{str(problem['loc'][0]).upper()}: {_of_setting(problem, shape)}"
        for problem in error.errors()
    )


def of_field(problem: Mapping[str, Any], shape: type[BaseModel] | None = None) -> str:
    """One error of a validation, without the name of the field.

    `shape`: the model whose field names are suggested for an unknown one.
    """
    value, kind, bounds = problem["input"], str(problem["type"]), problem.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return (
            "there is no such"
            f" field.{_meant(str(problem['loc'][-1]), shape.model_fields if shape else ())}"
        )
    if kind in ("value_error", "assertion_error"):
        return str(problem["msg"]).removeprefix("Value error, ")
    if kind == "literal_error":
        return f"{_shown(value)} is not one of {bounds['expected']}"
    for name, words in _BOUNDS.items():
        if name in bounds:
            return f"{_shown(value)} must be {words} {bounds[name]}"
    for beginning, words in _IS_NOT.items():
        if kind.startswith(beginning):
            return f"{_shown(value)} {words}"
    return f"{_shown(value)} cannot be used"


def unknown_settings(environment: Iterable[str], known: Iterable[str]) -> dict[str, str | None]:
    """Variables with our prefix that nothing reads, each with the most similar name that exists.

    `known`: names of settings, and of other variables that are read.
    """
    names = set(CLI_VARIABLES)
    for name in known:
        names.add(PREFIX + name.upper().removeprefix(PREFIX))
    found: dict[str, str | None] = {}
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper() not in names:
            close = get_close_matches(name.upper(), names, n=1, cutoff=0.7)
            found[name] = close[0] if close else None
    return found


def _of_setting(problem: Mapping[str, Any], shape: type[BaseModel]) -> str:
    field = shape.model_fields[str(problem["loc"][0])]
    words = of_field(problem)
    if _is_secret(field):
        # Neither the value, nor words that may quote it.
        return f"{words}." if problem["type"] == "value_error" else "the value cannot be used."
    if problem["type"] == "value_error":
        return f"{_shown(problem['input'])}: {words}."
    return f"{words}. {_allowed(field)}"


def _is_secret(field: FieldInfo) -> bool:
    return "SecretStr" in str(field.annotation) or field.annotation is SecretStr


def _allowed(field: FieldInfo) -> str:
    """The bounds and the default of a setting."""
    bounds = []
    for rule in field.metadata:
        for name, words in _BOUNDS.items():
            value = getattr(rule, name, None)
            if isinstance(rule, Gt | Ge | Lt | Le) and value is not None:
                bounds.append(f"{words} {value}")
    allowed = f"Allowed: {' and '.join(bounds)}. " if bounds else ""
    return f"{allowed}Without it: {'none' if field.default is None else field.default}."


def _meant(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"

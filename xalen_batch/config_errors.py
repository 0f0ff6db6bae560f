"""Errors in what an operator wrote, settings and the model catalog, as sentences: the field, its
value and what is allowed.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

LONGEST_VALUE = 80
PREFIX = "XALEN_"
# Variables of the command line, which are no settings.
OTHERS = frozenset({"XALEN_BASE_URL", "XALEN_API_KEY", "XALEN_DEBUG"})

# What a value is not, by the beginning of the validation library's name of the error.
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
    """Each wrong variable with its value, unless that is secret, what is allowed, and what holds
    without it.
    """
    return " ".join(
        f"{PREFIX}{str(problem['loc'][0]).upper()}: {_of_setting(problem, shape)}"
        for problem in error.errors()
    )


def of_field(problem: Mapping[str, Any], shape: type[BaseModel] | None = None) -> str:
    """One error of a validation without its place.

    `shape`: where the misspelt name of a field is looked for.
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
    for name, words in (
        ("gt", "more than"),
        ("ge", "at least"),
        ("lt", "less than"),
        ("le", "at most"),
    ):
        if name in bounds:
            return f"{_shown(value)} must be {words} {bounds[name]}"
    words = next(
        (words for beginning, words in _IS_NOT.items() if kind.startswith(beginning)),
        "cannot be used",
    )
    return f"{_shown(value)} {words}"


def unknown_settings(environment: Iterable[str], known: Iterable[str]) -> dict[str, str | None]:
    """Variables with our prefix that name no setting, each with the name that was probably meant.

    `known`: fields, and other variables.
    """
    names = {
        name.upper() if name.upper().startswith(PREFIX) else f"{PREFIX}{name.upper()}"
        for name in known
    } | OTHERS
    wrong = [
        name
        for name in environment
        if name.upper().startswith(PREFIX) and name.upper() not in names
    ]
    return {
        name: next(iter(get_close_matches(name.upper(), names, n=1, cutoff=0.7)), None)
        for name in sorted(wrong)
    }


def _of_setting(problem: Mapping[str, Any], shape: type[BaseModel]) -> str:
    field = shape.model_fields[str(problem["loc"][0])]
    words = of_field(problem)
    if _is_secret(field):
        # The value, and words that may quote it, stay out.
        return f"{words}." if problem["type"] == "value_error" else "the value cannot be used."
    if problem["type"] == "value_error":
        return f"{_shown(problem['input'])}: {words}."
    return f"{words}. {_allowed(field)}"


def _is_secret(field: FieldInfo) -> bool:
    return "SecretStr" in str(field.annotation) or field.annotation is SecretStr


def _allowed(field: FieldInfo) -> str:
    bounds = [
        f"{words} {value}"
        for rule in field.metadata
        for kind, name, words in (
            (Gt, "gt", "more than"),
            (Ge, "ge", "at least"),
            (Lt, "lt", "less than"),
            (Le, "le", "at most"),
        )
        if isinstance(rule, kind) and (value := getattr(rule, name)) is not None
    ]
    allowed = f"Allowed: {' and '.join(bounds)}. " if bounds else ""
    return f"{allowed}Without it: {'none' if field.default is None else field.default}."


def _meant(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"

"""The error of a request that a real server refuses."""

from typing import Any, TypeVar

from xalen_batch.backends.outcomes import envelope
from xalen_batch.endpoints.form import InvalidBody

T = TypeVar("T")


class Refusal(Exception):
    """A request that a real server refuses. `answer` catches it and sends its `body`."""

    def __init__(
        self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = envelope(status, message, code=code, param=param)


def checked(form: T | InvalidBody) -> T:
    """The form of a request. Raises Refusal for a body that its endpoint does not take."""
    if isinstance(form, InvalidBody):
        raise Refusal(form.message, param=form.param.removeprefix("body."))
    return form


# Errors in OpenAI's words.


def missing(param: str) -> Refusal:
    return Refusal(
        f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param
    )


def invalid_type(param: str, expected: str, value: Any) -> Refusal:
    """`expected` has its article, such as `an object`."""
    return Refusal(
        f"Invalid type for '{param}': expected {expected}, but got {_type_of(value)} instead.",
        code="invalid_type",
        param=param,
    )


def invalid_value(param: str, value: Any, supported: str) -> Refusal:
    shown = f"'{value[:100]}'" if isinstance(value, str) else _type_of(value)
    return Refusal(
        f"Invalid value: {shown}. Supported values are: {supported}.",
        code="invalid_value",
        param=param,
    )


def _type_of(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "a boolean"
    return _TYPES.get(type(value), "another value")


_TYPES = {
    str: "a string",
    int: "an integer",
    float: "a decimal",
    list: "an array",
    dict: "an object",
}

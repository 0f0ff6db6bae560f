"""The error of a request that a real server refuses."""

from typing import TypeVar

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

"""The error of a request that a real server refuses."""

from xalen_batch.backends.outcomes import envelope


class Refusal(Exception):
    """A request that a real server refuses. `answer` catches it and sends its `body`."""

    def __init__(
        self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = envelope(status, message, code=code, param=param)

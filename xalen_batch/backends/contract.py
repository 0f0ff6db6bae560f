"""The seam between the engine and a model: one function, Request → Outcome.

What a backend says is not trusted; what went wrong is a value, never an exception. What is made for
every line is a msgspec Struct, which costs a tenth of a frozen dataclass.
"""

from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from xalen_batch.catalog import Endpoint


class Request(Struct, frozen=True, gc=False):
    """One line on its way to a model. `body` is the user's JSON object as bytes, unchanged."""

    endpoint: Endpoint
    body: bytes
    request_id: str


class Usage(Struct, frozen=True, gc=False):
    """Tokens of one answer; never negative.

    `counted`: by us, since the backend reported no usable numbers.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    counted: bool = False


class Answered(Struct, frozen=True, gc=False):
    """A 2xx whose body is one JSON object on one line (it becomes part of a JSONL line).

    Billed by `usage`, which the body states.
    """

    status: int
    body: bytes
    usage: Usage


class Refused(Struct, frozen=True, gc=False):
    """The model's final no: a 4xx with an OpenAI error envelope as body, on one line.

    The line fails, billed 0.
    """

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Retryable:
    """No answer, and another attempt may get one. `backends/outcomes.py` says which statuses are
    what.

    `status` is the HTTP status where there was one. `retry_after` is the backend's own wish in
    seconds. `is_overload`: the backend is there and busy. `is_unreachable`: no request can succeed
    until the operator acts (no connection, a refused key). `refusal`: what the line ends with if
    the backend answers other lines; else the operator's setup is to blame. `may_be_own`: the
    refusal is a JSON error as model servers write it, and does not name the model, so the line may
    be to blame.
    """

    reason: str
    status: int | None = None
    retry_after: float | None = None
    is_timeout: bool = False
    is_overload: bool = False
    is_unreachable: bool = False
    refusal: Refused | None = None
    may_be_own: bool = False

    @property
    def is_failed_attempt(self) -> bool:
        """Whether the line itself may be to blame: not if the backend was busy, away or set up
        wrongly for any line.
        """
        return not (self.is_overload or self.is_unreachable or self.refusal)


Outcome = Answered | Refused | Retryable


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The line used up its attempts; `last` is what the last one met."""

    last: Retryable
    attempts: int


@dataclass(frozen=True, slots=True)
class NotRun:
    """The line has no outcome and goes back to its task: its work was stopped, or the backend is
    broken.
    """


Ended = Answered | Refused | Exhausted
NOT_RUN = NotRun()


class Backend(Protocol):
    """A place where one model runs. Made and used on a worker's event loop."""

    async def send(self, request: Request) -> Outcome:
        """Run one request within the settings' total timeout. Raises nothing but CancelledError."""
        ...

    async def close(self) -> None: ...

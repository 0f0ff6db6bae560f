"""The contract between the engine and a model: one function, Request → Outcome.

Backends are not trusted. Failures are values, never exceptions. The types that every line creates
are msgspec Structs, which cost a tenth of a frozen dataclass.
"""

from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from msgspec import Struct

from xalen_batch.endpoints.names import Endpoint
from xalen_batch.endpoints.usage import Usage


class Request(Struct, frozen=True, gc=False):
    """One line on its way to a model. `body` is the user's JSON object as bytes, unchanged."""

    endpoint: Endpoint
    body: bytes
    request_id: str


class Answered(Struct, frozen=True, gc=False):
    """A 2xx whose body is one JSON object on one line (it becomes part of a JSONL line).

    Billed by `usage`, which the body states.
    """

    status: int
    body: bytes
    usage: Usage


class Refused(Struct, frozen=True, gc=False):
    """A final 4xx, which no retry changes; `body` is an OpenAI error envelope on one line.

    The line fails and is billed 0.
    """

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Retryable:
    """No answer, but another attempt may get one. `backends/outcomes.py` maps statuses to fields.

    `status` is the HTTP status, if there was one. `retry_after` is the pause that the backend asks
    for, in seconds. `is_overload`: the backend works and is busy. `is_unreachable`: no request can
    succeed until the operator acts (no connection, a refused key). `refusal`: the error of the line
    if the backend answers other lines; if it answers none, the operator's setup is at fault.
    `may_be_own`: the refusal is a JSON error as model servers write it and does not name the model,
    so the line itself may be at fault. `server`: the number of the model's server, from 1.
    """

    reason: str
    status: int | None = None
    retry_after: float | None = None
    is_timeout: bool = False
    is_overload: bool = False
    is_unreachable: bool = False
    refusal: Refused | None = None
    may_be_own: bool = False
    server: int = 1

    @property
    def is_failed_attempt(self) -> bool:
        """Whether this counts as a failed attempt of the line.

        It does not if the backend is busy or unreachable, or if its setup may be at fault.
        """
        return not (self.is_overload or self.is_unreachable or self.refusal)


Outcome = Answered | Refused | Retryable


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The line used up its attempts; `last` is the outcome of the last one."""

    last: Retryable
    attempts: int


@dataclass(frozen=True, slots=True)
class NotRun:
    """The line has no outcome and goes back to its task: the run stopped or the circuit is open."""


Ended = Answered | Refused | Exhausted
NOT_RUN = NotRun()


class Event(NamedTuple):
    """One server-sent event. `name` is None where the endpoint names none; `data` is JSON."""

    data: bytes
    name: str | None = None


Events = AsyncIterator[Event]
Opening = AbstractAsyncContextManager[Events | Refused | Retryable]


class StreamBroken(Exception):
    """The stream ended before the answer was complete. `str()` says why, for the log."""


class Backend(Protocol):
    """A place where one model runs. Created and used on a worker's event loop thread."""

    def send(self, request: Request) -> Coroutine[Any, Any, Outcome]:
        """Run one request within the settings' total timeout. Raises nothing but CancelledError."""
        ...

    def open(self, request: Request) -> Opening:
        """As `send`, for an answer that is read as it arrives. Raises StreamBroken while it is."""
        ...

    async def close(self) -> None: ...

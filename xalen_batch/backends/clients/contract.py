"""The contract of the HTTP clients, and the exceptions for exchanges without an answer."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Reply(NamedTuple):
    """A complete HTTP answer. `header` returns a header's value by its lower-case name, or None."""

    status: int
    body: bytes
    header: Callable[[str], str | None]


class Streamed(NamedTuple):
    """The head of an HTTP answer, and its body as it arrives."""

    status: int
    chunks: AsyncIterator[bytes]
    header: Callable[[str], str | None]


class NoReply(Exception):
    """The exchange ended without an answer. `str()` says why, for people, without a period."""


class TimedOut(NoReply):
    """Connecting, sending and the whole answer took longer than one request may."""


class NotConnected(NoReply):
    """No connection could be made, so the server has not seen the request."""


class AnswerTooLong(NoReply):
    """The answer passed the byte cap, and was not read further."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds for a request and for its connect; the cap on an answer's decompressed bytes, unless
    a request has its own.
    """

    request_timeout: float
    connect_timeout: float
    answer_bytes: int


class Client(Protocol):
    """An HTTP client of one server.

    Created and used on a worker's event loop thread. The caller bounds the requests in flight.
    """

    async def post(
        self, path: str, body: bytes, request_id: str, longest: int | None = None
    ) -> Reply:
        """POST `body` to the server's root plus `path`.

        `longest`: the cap on this answer's bytes; None: that of the limits. Raises NoReply, and
        CancelledError if the caller cancels.
        """
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...

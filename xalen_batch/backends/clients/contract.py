"""What an HTTP client offers a backend, and how it says that there is no answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Reply(NamedTuple):
    """An HTTP answer as it came. `header` looks up a header by its lower-case name."""

    status: int
    body: bytes
    header: Callable[[str], str | None]


class NoReply(Exception):
    """The exchange ended without an answer. `str()` says why, for people, without a period."""


class TimedOut(NoReply):
    """Connecting, sending and the whole answer took longer than one request may."""


class NotConnected(NoReply):
    """No connection was had, so the server has not seen the request."""


class AnswerTooLong(NoReply):
    """The answer passed the byte cap, and was not read further."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds for one request and for its connection; the most bytes of an answer, decompressed."""

    request_timeout: float
    connect_timeout: float
    answer_bytes: int


class Client(Protocol):
    """Posts to one server.

    Made and used on a worker's event loop; requests in flight are bounded by the caller.
    """

    async def post(self, path: str, body: bytes, request_id: str) -> Reply:
        """POST `body` to the server's root plus `path`.

        Raises NoReply, and CancelledError when the caller gives up.
        """
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...

"""Each request to a backend is counted once, by how it ended."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from xalen_batch.backends.contract import (
    Answered,
    Event,
    Events,
    Outcome,
    Refused,
    Request,
    Retryable,
    StreamBroken,
)
from xalen_batch.backends.metered import Metered
from xalen_batch.endpoints.names import CHAT
from xalen_batch.endpoints.usage import Usage
from xalen_batch.metrics.requests import Kind, Requests

REQUEST = Request(CHAT, b"{}", "req")
ANSWER = Answered(200, b"{}", Usage(7, 5, 2))


class Inner:
    """A backend with one outcome; None: it never answers. A stream with `breaks` breaks off."""

    def __init__(self, outcome: Outcome | None, *, breaks: bool = False) -> None:
        self.outcome = outcome
        self.breaks = breaks
        self.is_closed = False

    async def send(self, request: Request) -> Outcome:
        if self.outcome is None:
            await asyncio.Event().wait()
        assert self.outcome is not None
        return self.outcome

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Events | Refused | Retryable]:
        if isinstance(self.outcome, Refused | Retryable):
            yield self.outcome
        else:
            yield self._events()

    async def _events(self) -> AsyncIterator[Event]:
        yield Event(b"{}")
        if self.breaks:
            raise StreamBroken("it ended")

    async def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (ANSWER, Kind.ANSWERED),
        (Refused(400, b"{}"), Kind.REFUSED),
        (Retryable("busy", 429, is_overload=True), Kind.OVERLOAD),
        (Retryable("late", is_timeout=True), Kind.TIMEOUT),
        (Retryable("away", is_unreachable=True), Kind.UNREACHABLE),
        (Retryable("a fault", 500), Kind.ERROR),
    ],
)
def test_a_request_counts_by_its_outcome(outcome: Outcome, kind: Kind) -> None:
    counts = Requests()
    assert asyncio.run(Metered(Inner(outcome), counts).send(REQUEST)) is outcome
    assert counts.kinds == {kind: 1}
    tokens = (7, 2, 5) if outcome is ANSWER else (0, 0, 0)
    assert (counts.input, counts.cached, counts.output) == tokens


def test_a_cancelled_request_counts() -> None:
    counts = Requests()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await Metered(Inner(None), counts).send(REQUEST)

    asyncio.run(main())
    assert counts.kinds == {Kind.CANCELLED: 1}


@pytest.mark.parametrize(
    ("inner", "read_all", "kind"),
    [
        (Inner(ANSWER), True, Kind.ANSWERED),
        (Inner(ANSWER), False, Kind.CANCELLED),
        (Inner(ANSWER, breaks=True), True, Kind.ERROR),
        (Inner(Refused(400, b"{}")), True, Kind.REFUSED),
        (Inner(Retryable("busy", 429, is_overload=True)), True, Kind.OVERLOAD),
    ],
)
def test_a_stream_counts_when_it_is_left(inner: Inner, read_all: bool, kind: Kind) -> None:
    counts = Requests()

    async def main() -> None:
        async with Metered(inner, counts).open(REQUEST) as stream:
            if isinstance(stream, Refused | Retryable):
                return
            async for _ in stream:
                if not read_all:
                    raise asyncio.CancelledError

    if kind is Kind.CANCELLED:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(main())
    elif kind is Kind.ERROR:
        with pytest.raises(StreamBroken):
            asyncio.run(main())
    else:
        asyncio.run(main())
    assert counts.kinds == {kind: 1}


def test_closing_closes_the_backend() -> None:
    inner = Inner(ANSWER)
    asyncio.run(Metered(inner, Requests()).close())
    assert inner.is_closed

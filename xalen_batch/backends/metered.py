"""Counts the requests to a backend for metrics, and how long answers take."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from xalen_batch.backends.contract import (
    Answered,
    Backend,
    Events,
    Outcome,
    Refused,
    Request,
    Retryable,
    StreamBroken,
)
from xalen_batch.backends.outcomes import kind_of
from xalen_batch.metrics.requests import Kind, Requests


class Metered:
    """A backend whose requests are counted; event loop thread only."""

    def __init__(self, backend: Backend, counts: Requests) -> None:
        self.inner = backend
        self._counts = counts

    async def send(self, request: Request) -> Outcome:
        started, outcome = time.monotonic(), None
        try:
            outcome = await self.inner.send(request)
        finally:
            self._counts.ended(kind_of(outcome), time.monotonic() - started)
        if isinstance(outcome, Answered):
            self._counts.used(outcome.usage)
        return outcome

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Events | Refused | Retryable]:
        """As `send`, without the tokens: the reader of the events counts them."""
        started, kind = time.monotonic(), Kind.CANCELLED
        try:
            async with self.inner.open(request) as stream:
                yield stream
                kind = Kind.ANSWERED
                if isinstance(stream, Refused | Retryable):
                    kind = kind_of(stream)
        except StreamBroken:
            kind = Kind.ERROR
            raise
        finally:
            self._counts.ended(kind, time.monotonic() - started)

    async def close(self) -> None:
        await self.inner.close()

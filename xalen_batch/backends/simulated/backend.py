"""The simulated models in a worker process, which run every line of `xln_test_` keys."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from xalen_batch.backends import streams
from xalen_batch.backends.clients.contract import Reply
from xalen_batch.backends.contract import Answered, Events, Outcome, Refused, Request, Retryable
from xalen_batch.backends.outcomes import outcome_of
from xalen_batch.backends.simulated.faults import Attempts
from xalen_batch.backends.simulated.model import answer
from xalen_batch.catalog import Model
from xalen_batch.config import settings
from xalen_batch.endpoints import chunks


class SimulatedBackend:
    """One simulated model.

    Its answers are classified like a server's. `latency_ms` replaces the catalog's latency.
    """

    def __init__(self, model: Model, *, latency_ms: int | None = None) -> None:
        self._model = model
        self._latency_ms = latency_ms
        self._attempts = Attempts()

    async def send(self, request: Request) -> Outcome:
        """Run one request within the settings' total timeout. Raises nothing but CancelledError."""
        reply = answer(self._model, request, attempts=self._attempts, latency_ms=self._latency_ms)
        try:
            async with asyncio.timeout(settings().request_timeout):
                await (
                    asyncio.Event().wait()
                    if reply.ending == "hang"
                    else asyncio.sleep(reply.latency)
                )
        except TimeoutError:
            return Retryable("The backend did not answer in time.", is_timeout=True)
        if reply.ending in ("reset", "truncated"):
            return Retryable("The connection to the backend failed.")
        return outcome_of(Reply(reply.status, reply.body, reply.headers.get), request)

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Events | Refused | Retryable]:
        """As `send`, for an answer that is read as it arrives. Its pieces fill the latency."""
        reply = answer(self._model, request, attempts=self._attempts, latency_ms=self._latency_ms)
        outcome = (
            Retryable("The connection to the backend failed.")
            if reply.ending != "whole"
            else outcome_of(Reply(reply.status, reply.body, reply.headers.get), request)
        )
        events: Iterable[dict[str, Any]] = ()
        if isinstance(outcome, Answered):
            events = chunks.of_completion(msgspec.json.decode(outcome.body))
        async with streams.opened(outcome, events, seconds=reply.latency) as stream:
            yield stream

    async def close(self) -> None:
        return

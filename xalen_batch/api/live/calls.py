"""Runs live calls at their backends, and has them recorded. Event loop thread only."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI

from xalen_batch import log
from xalen_batch.api import health
from xalen_batch.api.live import errors
from xalen_batch.api.live.ledger import Call, recorder
from xalen_batch.api.live.queued import Waiting
from xalen_batch.api.live.relay import Relay, streamed_body
from xalen_batch.api.live.requests import LiveCall
from xalen_batch.api.live.stations import Stations
from xalen_batch.backends.contract import Answered, Outcome, Refused, Request, Retryable
from xalen_batch.config import settings
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import XalenError
from xalen_batch.metrics import requests

logger = log.get(__name__)
T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection before its answer was complete."""


class Calls:
    """The live calls of one API process."""

    def __init__(self) -> None:
        self._stations = Stations()
        self.waiting = Waiting()

    async def run(
        self, call: LiveCall, id: str, gone: Callable[[], Awaitable[object]]
    ) -> Answered | Refused:
        """The model's answer to a call, which is billed if it is one.

        What `gone` returns is done when the client has closed its connection. Raises ClientGone,
        in which case the model's answer is given up and nothing is billed, and errors of
        `live/errors.py`.
        """
        recorder.refuse_if_full()
        outcome = await unless(gone, self._send(call, Request(call.endpoint, call.body, id)))
        if isinstance(outcome, Retryable):
            raise _unanswered(call, outcome)
        if isinstance(outcome, Answered):
            recorder.add(Call(call.ledger, id, outcome.status, outcome.usage))
        return outcome

    async def _send(self, call: LiveCall, request: Request) -> Outcome:
        async with self._stations.of(call.model, call.caller.livemode).use(request) as use:
            outcome = await use.backend.send(request)
            if isinstance(outcome, Answered):
                use.used(outcome.usage)
            return outcome

    @asynccontextmanager
    async def stream(
        self, call: LiveCall, id: str
    ) -> AsyncIterator[AsyncIterator[bytes] | Refused]:
        """The body of a streamed answer, or the model's refusal. Raises errors of `live/errors.py`.

        The model's answer is given up when the context is left.
        """
        recorder.refuse_if_full()
        request = Request(call.endpoint, streamed_body(call), id)
        async with self._stations.of(call.model, call.caller.livemode).use(request) as use:

            def bill(usage: Usage) -> None:
                use.used(usage)
                requests.of(call.model.id, call.caller.livemode).used(usage)
                recorder.add(Call(call.ledger, id, 200, usage))

            async with use.backend.open(request) as stream:
                if isinstance(stream, Retryable):
                    raise _unanswered(call, stream)
                if isinstance(stream, Refused):
                    yield stream
                    return
                async with aclosing(Relay(call, request, bill).body(stream)) as body:
                    yield body

    async def close(self) -> None:
        await self._stations.close()


def _unanswered(call: LiveCall, outcome: Retryable) -> XalenError:
    logger.info("live.unanswered", model=call.model.id, reason=outcome.reason)
    return errors.of_outcome(call.model.id, outcome)


async def unless(gone: Callable[[], Awaitable[object]], answer: Awaitable[T]) -> T:
    """The answer, unless the client goes first: then its task is cancelled, as by a timeout."""
    task, leaving = asyncio.current_task(), asyncio.ensure_future(gone())
    assert task is not None
    is_over = False

    def leave(left: asyncio.Future[object]) -> None:
        if not is_over and not left.cancelled():
            task.cancel()

    leaving.add_done_callback(leave)
    try:
        return await answer
    except asyncio.CancelledError:
        # The server may have cancelled the task as well.
        if leaving.done() and not task.uncancel():
            raise ClientGone from None
        raise
    finally:
        is_over = True
        leaving.cancel()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """The state of the API's process: that of its health, and its live calls."""
    async with health.lifespan(app) as state:
        calls = Calls()
        try:
            yield {**state, "calls": calls}
        finally:
            await calls.close()
            await asyncio.to_thread(recorder.close, settings().shutdown_grace)

"""Runs live calls at their backends, and has them recorded. Event loop thread only."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI

from xalen_batch import log
from xalen_batch.api import health
from xalen_batch.api.live import errors
from xalen_batch.api.live.ledger import Call, recorder
from xalen_batch.api.live.requests import LiveCall
from xalen_batch.backends import registry
from xalen_batch.backends.buffer import Buffer, Buffers
from xalen_batch.backends.contract import Answered, Backend, Refused, Request, Retryable
from xalen_batch.config import settings
from xalen_batch.errors import ConfigError, Unavailable

logger = log.get(__name__)
T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection before its answer was complete."""


class Calls:
    """The live calls of one API process."""

    def __init__(self) -> None:
        self._buffers = Buffers(settings().held_bytes)
        self._buffer_of: dict[str, Buffer] = {}

    async def run(self, call: LiveCall, id: str, gone: Awaitable[object]) -> Answered | Refused:
        """The model's answer to a call, which is billed if it is one.

        `gone` is done when the client has closed its connection. Raises ClientGone, in which case
        the model's answer is given up and nothing is billed, and errors of `live/errors.py`.
        """
        recorder.refuse_if_full()
        backend = self._backend(call)
        outcome = await _unless(gone, backend.send(Request(call.endpoint, call.body, id)))
        if isinstance(outcome, Retryable):
            logger.info("live.unanswered", model=call.model.id, reason=outcome.reason)
            raise errors.of_outcome(call.model.id, outcome)
        if isinstance(outcome, Answered):
            recorder.add(Call(call.ledger, id, outcome.status, outcome.usage))
        return outcome

    def _backend(self, call: LiveCall) -> Backend:
        buffer = self._buffer_of.get(call.model.id)
        if buffer is None:
            buffer = self._buffer_of[call.model.id] = self._buffers.add()
        try:
            return registry.backend_for(call.model, call.caller.livemode, buffer)
        except ConfigError as error:
            logger.error("backend.unusable", model=call.model.id, **log.cause(error))
            raise Unavailable(
                f"{call.model.id} cannot be used right now. Ask whoever runs the server."
            ) from None


async def _unless(gone: Awaitable[object], answer: Awaitable[T]) -> T:
    """The answer, unless the client goes first."""
    leaving, answering = asyncio.ensure_future(gone), asyncio.ensure_future(answer)
    try:
        await asyncio.wait((leaving, answering), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientGone
        return answering.result()
    finally:
        leaving.cancel()
        answering.cancel()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """The state of the API's process: that of its health, and its live calls."""
    async with health.lifespan(app) as state:
        calls = Calls()
        try:
            yield {**state, "calls": calls}
        finally:
            await registry.close_all()
            await asyncio.to_thread(recorder.close, settings().shutdown_grace)

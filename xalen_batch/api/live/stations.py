"""The models that live calls of this process use, with their backends, permits and rate limits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from xalen_batch import log
from xalen_batch.api.live import errors
from xalen_batch.api.live.permits import LivePermits
from xalen_batch.backends import registry
from xalen_batch.backends.buffer import Buffer, Buffers
from xalen_batch.backends.contract import Backend, Request
from xalen_batch.catalog import Model
from xalen_batch.config import settings
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import ConfigError, Unavailable
from xalen_batch.ratelimit.backend import Rates, estimate
from xalen_batch.ratelimit.permits import name_of

logger = log.get(__name__)

# A call that would wait for more seconds for its backend's limits per minute is refused.
LONGEST_WAIT = 1.0


@dataclass
class Use:
    """One call at a station. `tokens`: those that it used; None: it got no answer."""

    backend: Backend
    tokens: int | None = None

    def used(self, usage: Usage) -> None:
        self.tokens = usage.input_tokens + usage.output_tokens


class Station:
    """One model in one mode; event loop thread only.

    A simulated backend has neither permits nor rate limits: it takes any number of calls.
    """

    def __init__(self, model: Model, livemode: bool, backend: Backend, buffer: Buffer) -> None:
        self.model = model
        self.backend = backend
        self.buffer = buffer
        self.in_use = 0
        config = model.backend
        self._permits: LivePermits | None = None
        self._rates: Rates | None = None
        if model.kind_in(livemode) != "simulated":
            name = name_of(model.id, livemode=livemode)
            self._permits = LivePermits(model.id, name, config.max_in_flight, config.live_reserve)
            if config.requests_per_minute or config.tokens_per_minute:
                self._rates = Rates(
                    model.id,
                    requests_per_minute=config.requests_per_minute,
                    tokens_per_minute=config.tokens_per_minute,
                    workers=lambda: 1,
                )

    @asynccontextmanager
    async def use(self, request: Request) -> AsyncIterator[Use]:
        """The backend, within its limits. Raises TooManyRequests while they are used up."""
        self.in_use += 1
        try:
            async with AsyncExitStack() as limits:
                if self._permits is not None:
                    await limits.enter_async_context(self._permits.one())
                use = Use(self.backend)
                if self._rates is not None:
                    if self._rates.wait > LONGEST_WAIT:
                        raise errors.busy(self.model.id, self._rates.wait)
                    expected = estimate(request.body, request.endpoint)
                    await self._rates.admit(expected)
                    limits.callback(lambda: self._settle(expected, use))
                yield use
        finally:
            self.in_use -= 1

    def _settle(self, expected: int, use: Use) -> None:
        assert self._rates is not None
        self._rates.settle(expected, use.tokens)

    async def close(self) -> None:
        """Close the backend, after the last call."""
        if self._permits is not None:
            await self._permits.close()
        if self._rates is not None:
            await self._rates.close()
        await self.backend.close()


class Stations:
    """The stations of one API process, which follow the catalog; event loop thread only."""

    def __init__(self) -> None:
        self._buffers = Buffers(settings().held_bytes)
        self._here: dict[tuple[str, bool], Station] = {}
        # Stations of entries that have changed, which close after their last call.
        self._retired: list[Station] = []
        self._closing: set[asyncio.Task[None]] = set()

    def of(self, model: Model, livemode: bool) -> Station:
        """The station of a model as the catalog has it now. Raises Unavailable."""
        key = model.id, livemode
        known = self._here.get(key)
        if known is not None and (model is known.model or model.runs_as(known.model)):
            return known
        if known is not None:
            self._retired.append(self._here.pop(key))
            registry.give_up(*key)
        self._close_retired()
        buffer = self._buffers.add()
        try:
            backend = registry.backend_for(model, livemode, buffer)
        except ConfigError as error:
            self._buffers.remove(buffer)
            logger.error("backend.unusable", model=model.id, **log.cause(error))
            raise Unavailable(
                f"{model.id} cannot be used right now. Ask whoever runs the server."
            ) from None
        station = self._here[key] = Station(model, livemode, backend, buffer)
        return station

    async def close(self) -> None:
        """Close all stations, after the last call."""
        for station in (*self._here.values(), *self._retired):
            await station.close()
        await registry.close_all()

    def _close_retired(self) -> None:
        for station in [each for each in self._retired if not each.in_use]:
            self._retired.remove(station)
            self._buffers.remove(station.buffer)
            closing = asyncio.create_task(station.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

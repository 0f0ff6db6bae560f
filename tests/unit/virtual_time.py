"""An event loop whose clock jumps to the next timer, so that minutes pass in milliseconds, and a
shared bucket on its clock.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any
from unittest import mock

import redis

from xalen_batch.ratelimit import backend
from xalen_batch.ratelimit.buckets import Ask, Grant, LocalBucket, RateLimits


class Selector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(Selector())
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._now = max(self._now, self._scheduled[0]._when)
        super()._run_once()


class Server:
    """Stands for Redis and its shared bucket. Another test compares it with the Lua script."""

    def __init__(self) -> None:
        self.is_away = False
        self.calls = 0
        self._bucket: LocalBucket | None = None

    def lose(self) -> None:
        self._bucket = None

    async def take(self, limits: RateLimits, ask: Ask) -> Grant:
        await asyncio.sleep(0.001)
        if self.is_away:
            raise redis.ConnectionError
        self.calls += 1
        now = asyncio.get_running_loop().time()
        if self._bucket is None:
            self._bucket = LocalBucket(limits, now)
            self._bucket.take(Ask(spent_requests=-1), 1, now)
        grant = self._bucket.take(ask, 1, now)
        await asyncio.sleep(0.001)
        return grant


def run(main: Callable[[], Coroutine[Any, Any, None]], server: Server | None = None) -> None:
    """Run on virtual time; every bucket reaches this server within a millisecond."""
    server = server or Server()

    class Bucket:
        def __init__(self, name: str, limits: RateLimits) -> None:
            self._limits = limits

        async def take(self, ask: Ask) -> Grant:
            return await server.take(self._limits, ask)

        async def close(self) -> None:
            return

    with (
        mock.patch.object(backend, "SharedBucket", Bucket),
        asyncio.Runner(loop_factory=VirtualLoop) as runner,
    ):
        runner.run(main())

"""Lets live calls come first: bounds a worker's lanes while live calls want their backends."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from xalen_batch import ids, log
from xalen_batch.ratelimit import permits
from xalen_batch.ratelimit.permits import UNAVAILABLE, SharedPermits
from xalen_batch.worker.concurrency import share_of
from xalen_batch.worker.lane import Lane

logger = log.get(__name__)

# Seconds between two looks at the permits of a backend. While this process has more requests in
# flight than it may, it looks at the end of each.
LOOK = 0.5
# Seconds after which a lost subscription is made again.
RETRY = 1.0


class LiveFirst:
    """Keeps the bounds of the lanes of one worker process; event loop thread only.

    `workers` returns the number of live worker processes.
    """

    def __init__(self, workers: Callable[[], int]) -> None:
        self._workers = workers
        self._process = ids.new().hex
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._nudges: dict[str, asyncio.Event] = {}
        self._listening: asyncio.Task[None] | None = None

    def keep(self, name: str, lane: Lane, most: int, reserve: int) -> None:
        """Bound a lane from now on, in place of an earlier one of this name."""
        if name in self._keepers:
            self._keepers[name].cancel()
        self._nudges[name] = asyncio.Event()
        shared = SharedPermits(self._process, name, most, reserve)
        self._keepers[name] = asyncio.create_task(
            self._keep(lane, most, shared, self._nudges[name])
        )
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())

    async def close(self) -> None:
        """Give all permits back."""
        tasks = [*self._keepers.values(), *filter(None, (self._listening,))]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(
        self, lane: Lane, most: int, shared: SharedPermits, nudge: asyncio.Event
    ) -> None:
        # The permits that the lane may fill without asking.
        bound = share_of(most, self._workers())
        lane.on_ended = lambda: nudge.set() if lane.in_flight >= bound else None
        try:
            while True:
                nudge.clear()
                used = max(lane.in_flight, bound)
                try:
                    share = share_of(most, self._workers())
                    found = await shared.hold_batch(used=used, share=share)
                    bound = found.permits
                    lane.share(self._workers(), bound if found.is_bounded else None)
                    if used > max(bound, lane.in_flight):
                        # The lane fills fewer from now on: give the others up.
                        continue
                except UNAVAILABLE:
                    # Live calls use the reserve meanwhile.
                    lane.share(self._workers(), None)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await nudge.wait()
        finally:
            with suppress(*UNAVAILABLE):
                await shared.give_back()
            await shared.close()

    async def _listen(self) -> None:
        while True:
            try:
                async for name in permits.wanted():
                    if name in self._nudges:
                        self._nudges[name].set()
            except UNAVAILABLE as error:
                logger.debug("permits.unheard", error=type(error).__name__)
            await asyncio.sleep(RETRY)

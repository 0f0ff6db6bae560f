"""A worker's lane gives permits up for live calls as its lines end, and gets them back."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from xalen_batch import ids
from xalen_batch.ratelimit.permits import SharedPermits
from xalen_batch.worker import live_first
from xalen_batch.worker.lane import Lane
from xalen_batch.worker.live_first import LiveFirst

pytestmark = pytest.mark.usefixtures("valkey")
MOST = 8


class FullLane:
    """A lane that fills each permit that it may use."""

    def __init__(self) -> None:
        self.in_flight = self.bound = 0
        self.on_ended: Callable[[], object] = lambda: None

    def share(self, workers: int, most: int | None = None) -> None:
        self.bound = most or MOST
        self.in_flight = max(self.in_flight, self.bound)

    def end(self) -> None:
        self.in_flight = max(self.in_flight - 1, self.bound)
        self.on_ended()


@pytest.mark.parametrize("reserve", [0, 1])
def test_permits_go_to_live_calls_as_lines_end(
    monkeypatch: pytest.MonkeyPatch, reserve: int
) -> None:
    monkeypatch.setattr(live_first, "LOOK", 60)

    async def scenario() -> None:
        name, lane = ids.new().hex, FullLane()
        first, api = LiveFirst(lambda: 1), SharedPermits("a", name, MOST, reserve)
        first.keep(name, cast(Lane, lane), MOST, reserve)
        held = 0
        while not lane.in_flight:
            await asyncio.sleep(0.01)
        while lane.bound != MOST - 2:
            held = (await api.hold_live(2)).held
            assert held + lane.in_flight <= MOST
            await api.call_workers()
            await asyncio.sleep(0.01)
        while held < 2:
            lane.end()
            await asyncio.sleep(0.01)
            held = (await api.hold_live(2)).held
            assert held + lane.in_flight <= MOST
        await api.hold_live(0)
        await api.call_workers()
        while lane.bound != MOST - reserve:
            await asyncio.sleep(0.01)
        await first.close()
        await api.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))

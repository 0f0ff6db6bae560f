"""A backend that refuses beyond its slots, virtual time: the lanes of its workers keep it full."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.unit import virtual_time
from xalen_batch import ids
from xalen_batch.backends.contract import Answered, Ended, NotRun, Outcome, Request, Retryable
from xalen_batch.endpoints.names import CHAT
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models.line_attempts import Attempt
from xalen_batch.worker.circuit_breaker import Source, State
from xalen_batch.worker.lane import Lane

LATENCY, NETWORK = 0.1, 0.001
SLOTS = 64
# Seconds until the lanes have found the slots.
SETTLING = 3.0


@dataclass
class Backend:
    """Serves a number of requests at a time and refuses the rest."""

    retry_after: float | None = None
    slots: int = SLOTS
    network: float = NETWORK
    serving: int = 0
    refused_at: list[float] = field(default_factory=list)
    draws: random.Random = field(default_factory=lambda: random.Random(5))

    async def send(self, request: Request) -> Outcome:
        await self._travel()
        outcome = await self._serve()
        await self._travel()
        return outcome

    async def _travel(self) -> None:
        await asyncio.sleep(self.network * self.draws.expovariate(1.0))

    async def _serve(self) -> Outcome:
        if self.serving >= self.slots:
            self.refused_at.append(now())
            return Retryable("HTTP 429", 429, retry_after=self.retry_after, is_overload=True)
        self.serving += 1
        await asyncio.sleep(LATENCY)
        self.serving -= 1
        return Answered(200, b"{}", Usage(1, 1))

    async def close(self) -> None:
        return


@dataclass(frozen=True)
class FakeLine:
    number: int

    @property
    def request(self) -> Request:
        return Request(CHAT, b"{}", f"req_{self.number}")


@dataclass(eq=False)
class Batch:
    """Lines that the lanes of all workers claim as they have free capacity."""

    lines: int
    source: Source = field(default_factory=lambda: Source.of(ids.new(), ids.new()))
    outcomes: list[Ended] = field(default_factory=list)
    claims: list["Claim"] = field(default_factory=list)

    def claim(self, lane: Lane) -> None:
        free = lane.free_by_account()
        taken = min(free.get(self.source.account_id, free[None]), self.lines)
        if taken > 0:
            self.lines -= taken
            self.claims.append(Claim(self, lane, taken))
            lane.add(self.claims[-1], [FakeLine(number) for number in range(taken)])

    def cut(self) -> None:
        for claim in self.claims:
            claim.is_stopped = True
            claim.lane.stop(claim)
            claim.lane.cut(claim)


@dataclass(eq=False)
class Claim:
    """A task as one worker runs it: its lines are free again once all have ended or returned."""

    batch: Batch
    lane: Lane
    left: int
    is_stopped: bool = False
    returned: int = 0

    @property
    def source(self) -> Source:
        return self.batch.source

    def attempt_failed(self, line: Any, attempt: Attempt) -> None: ...

    def over(self, line: Any, outcome: Ended | NotRun) -> None:
        self.left -= 1
        if isinstance(outcome, NotRun):
            self.returned += 1
        else:
            self.batch.outcomes.append(outcome)
        if not self.left:
            self.batch.lines += self.returned


def now() -> float:
    return asyncio.get_running_loop().time()


def a_lane(backend: Backend, workers: int = 1) -> Lane:
    return Lane(backend, 512, workers=workers, clock=asyncio.get_running_loop().time)


async def run(batch: Batch, *lanes: Lane, until: Callable[[], bool]) -> None:
    while not until():
        for lane in lanes:
            batch.claim(lane)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("retry_after", [None, 1.0])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_full_backend_is_kept_full_and_refuses_few_requests(
    workers: int, retry_after: float | None
) -> None:
    async def main() -> None:
        lines, began = 20_000, now()
        backend, batch = Backend(retry_after), Batch(lines)
        lanes = [a_lane(backend, workers) for _ in range(workers)]
        await run(batch, *lanes, until=lambda: len(batch.outcomes) == lines)
        assert all(isinstance(outcome, Answered) for outcome in batch.outcomes)
        assert all(lane.circuit.state is State.CLOSED for lane in lanes)
        refused = [at for at in backend.refused_at if at > began + SETTLING]
        assert len(refused) <= 0.05 * lines
        # The last lines may have to wait for what the backend asks for.
        most = lines * (LATENCY + 2 * NETWORK) / SLOTS / 0.95 + (retry_after or 0.0)
        assert now() - began <= most

    virtual_time.run(main)


def test_a_worker_that_another_one_crowds_out_returns_its_lines() -> None:
    async def main() -> None:
        backend, batch = Backend(network=0.0), Batch(20_000)
        first, second = a_lane(backend, 2), a_lane(backend, 2)
        await run(batch, first, until=lambda: now() >= 1)
        batch.claim(second)
        assert second.unfinished == 256
        await run(batch, first, second, until=lambda: now() >= 5)
        assert second.unfinished <= 32
        lines = len(batch.outcomes) + batch.lines + first.unfinished
        assert lines <= 20_000 <= lines + 256
        batch.cut()

    virtual_time.run(main)


def test_a_backend_that_refuses_everything_opens_the_circuit_and_costs_no_line() -> None:
    async def main() -> None:
        lines, began = 10_000, now()
        backend, batch = Backend(slots=0), Batch(lines)
        lane = a_lane(backend)
        await run(batch, lane, until=lambda: lane.circuit.state is State.OPEN)
        # Each request of the first burst once, then one request at a time.
        assert len(backend.refused_at) <= 256 + 20
        assert 10 <= now() - began <= 20 * 2
        assert batch.outcomes == []
        batch.cut()

    virtual_time.run(main)


def test_after_a_short_outage_the_backend_is_full_again_within_seconds() -> None:
    async def main() -> None:
        lines = 20_000
        backend, batch = Backend(), Batch(lines)
        lane = a_lane(backend)
        await run(batch, lane, until=lambda: len(batch.outcomes) > 2_000)
        backend.slots = 0
        end = now() + 2
        await run(batch, lane, until=lambda: now() >= end)
        assert lane.limit == 1
        backend.slots = SLOTS
        end = now() + 8
        await run(batch, lane, until=lambda: lane.limit >= SLOTS)
        assert now() <= end
        batch.cut()

    virtual_time.run(main)

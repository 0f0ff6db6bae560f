"""Adaptive concurrency against backends on a clock that the test moves."""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest

from xalen_batch.worker.concurrency import Concurrency, Signal


@dataclass
class Backend:
    """Serves `slots` at a time, lets `queue` more wait, and refuses the rest.

    `latency`: of a request, by how many are served.
    """

    slots: int = 1_000_000
    queue: int = 0
    latency: Callable[[int], float] = lambda serving: 0.1
    refusal_seconds: float = 0.001
    retry_after: float = 1.0


@dataclass
class World:
    """Workers that always have a line to send, one backend, and a clock."""

    backend: Backend
    workers: list[Concurrency] = field(default_factory=list)
    now: float = 0.0
    answered: int = 0
    refused: int = 0
    serving: int = 0
    busy_seconds: float = 0.0
    is_resting: bool = False

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._waiting: list[Callable[[], None]] = []

    def worker(self, ceiling: int) -> Concurrency:
        made = Concurrency(ceiling, lambda: self.now)
        self.workers.append(made)
        return made

    def run(self, seconds: float) -> "World":
        """Let time pass; the counts cover only this time."""
        self.answered = self.refused = 0
        self.busy_seconds = 0.0
        end = self.now + seconds
        for worker in self.workers:
            self._send_from(worker)
        while self._events and self._events[0][0] <= end:
            at, _, act = heapq.heappop(self._events)
            self.busy_seconds += self.serving * (at - self.now)
            self.now = at
            act()
        self.now = end
        return self

    def rest(self, seconds: float) -> None:
        """Answer the requests in flight, then let time pass without a new request."""
        self.is_resting = True
        self.run(seconds)
        assert not self._events
        self.is_resting = False

    def _send_from(self, worker: Concurrency) -> None:
        while not self.is_resting and worker.in_flight < worker.limit:
            self._arrive(worker, worker.started())

    def _arrive(self, worker: Concurrency, token: int) -> None:
        backend = self.backend
        if self.serving >= backend.slots and len(self._waiting) >= backend.queue:
            self.refused += 1
            self._at(backend.refusal_seconds, lambda: self._refuse(worker, token))
        elif self.serving >= backend.slots:
            self._waiting.append(lambda: self._serve(worker, token))
        else:
            self._serve(worker, token)

    def _serve(self, worker: Concurrency, token: int) -> None:
        self.serving += 1
        self._at(self.backend.latency(self.serving), lambda: self._answer(worker, token))

    def _answer(self, worker: Concurrency, token: int) -> None:
        self.serving -= 1
        self.answered += 1
        while self._waiting and self.serving < self.backend.slots:
            self._waiting.pop(0)()
        self._over(worker, token, Signal.GOOD)

    def _refuse(self, worker: Concurrency, token: int) -> None:
        worker.ended(token, Signal.BUSY)
        # As a lane does: a line that is refused although it was alone in flight is tried again, and
        # no other line meanwhile.
        self._at(
            self.backend.retry_after if worker.limit == 1 else 0.0, lambda: self._send_from(worker)
        )

    def _over(self, worker: Concurrency, token: int, signal: Signal) -> None:
        worker.ended(token, signal)
        self._send_from(worker)

    def _at(self, pause: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + pause, next(self._numbers), act))


def share_of_slots(world: World, seconds: float) -> float:
    """The used share of the backend's slots from now on."""
    return world.run(seconds).busy_seconds / seconds / world.backend.slots


def test_a_backend_that_takes_all_gets_the_ceiling_within_a_second() -> None:
    world = World(Backend())
    worker = world.worker(256)
    world.run(1.0)
    assert worker.limit == 256


def test_the_ceiling_is_never_passed() -> None:
    world = World(Backend())
    worker = world.worker(100)
    for _ in range(200):
        world.run(0.05)
        assert worker.in_flight <= worker.limit <= 100


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("queue", [0, 32, 64])
def test_a_backend_that_refuses_beyond_its_slots_is_kept_full_and_seldom_has_to_refuse(
    workers: int, queue: int
) -> None:
    world = World(Backend(slots=64, queue=queue))
    for _ in range(workers):
        world.worker(512 // workers)
    world.run(10)
    assert share_of_slots(world, 8) >= 0.9
    assert world.refused <= 0.05 * world.answered


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("slots", [16, 32, 128, 256])
def test_it_follows_when_the_backends_slots_change(workers: int, slots: int) -> None:
    world = World(Backend(slots=64, queue=32))
    for _ in range(workers):
        world.worker(512 // workers)
    world.run(10)
    world.backend.slots, world.backend.queue = slots, slots // 2
    world.run(8)
    assert share_of_slots(world, 6) >= 0.85
    assert world.refused <= 0.1 * world.answered


def test_latency_that_rises_with_load_throttles_nothing_while_more_is_answered() -> None:
    # A batching server: under load each request is slower, and all together are faster.
    world = World(Backend(latency=lambda serving: 0.1 + 0.002 * serving))
    worker = world.worker(256)
    world.run(10)
    assert worker.limit == 256


def test_what_only_waits_longer_is_not_sent() -> None:
    """A backend with an endless queue gains nothing from more requests."""
    world = World(Backend(slots=32, queue=1_000_000))
    worker = world.worker(1_024)
    worker.limit = 64
    world.run(10)
    assert share_of_slots(world, 6) >= 0.98
    assert worker.limit <= 128


def test_a_long_tail_does_not_keep_it_from_the_ceiling() -> None:
    draw = random.Random(7)
    world = World(Backend(latency=lambda serving: 0.12 * math.exp(draw.gauss(0, 1))))
    worker = world.worker(256)
    world.run(4)
    assert worker.limit == 256
    world.run(10)
    assert worker.limit == 256


def test_a_storm_of_refusals_brings_it_to_one_and_it_recovers() -> None:
    world = World(Backend(slots=0, queue=0))
    worker = world.worker(256)
    world.run(1)
    assert worker.limit == 1
    world.backend.slots = 200
    world.run(8)
    assert share_of_slots(world, 6) >= 0.85


def test_requests_from_before_a_cut_do_not_cut_again() -> None:
    worker = Concurrency(100, lambda: 0.0)
    tokens = [worker.started() for _ in range(worker.limit)]
    worker.ended(tokens[0], Signal.BUSY)
    after = worker.limit
    for token in tokens[1:]:
        worker.ended(token, Signal.BUSY)
    assert worker.limit == after < 50
    worker.ended(worker.started(), Signal.BUSY)
    assert worker.limit < after


def test_what_is_broken_says_nothing_of_how_busy_it_is() -> None:
    worker = Concurrency(100, lambda: 0.0)
    for _ in range(1_000):
        worker.ended(worker.started(), Signal.BROKEN)
    assert worker.limit == 50


def test_a_share_that_shrinks_or_grows_is_taken_at_once() -> None:
    world = World(Backend())
    worker = world.worker(256)
    world.run(2)
    worker.ceiling = 128
    assert worker.limit == 128
    world.run(2)
    worker.ceiling = 256
    assert worker.limit == 256


def test_rest_is_no_measure() -> None:
    world = World(Backend())
    worker = world.worker(64)
    world.run(2)
    assert worker.limit == 64
    goodput = worker.goodput
    world.rest(3_600)
    for _ in range(20):
        world.run(0.1)
        assert worker.limit == 64
        assert worker.goodput == pytest.approx(goodput, rel=0.05)

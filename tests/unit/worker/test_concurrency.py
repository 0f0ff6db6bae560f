"""Adaptive concurrency against backends on a clock that the test moves."""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import pytest

from xalen_batch.worker.concurrency import Concurrency, Signal


@dataclass
class Backend:
    """Serves `slots` at a time, lets `queue` more wait, and refuses the rest.

    `latency`: of a request, by how many are served. `network`: mean seconds on the way to the
    backend, and on the way back. `refuses`: share of requests that it refuses whatever its load.
    """

    slots: int = 1_000_000
    queue: int = 0
    latency: Callable[[int], float] = lambda serving: 0.1
    network: float = 0.0
    refuses: float = 0.0
    refusal_seconds: float = 0.001
    retry_after: float = 1.0


@dataclass
class Fixed:
    """A fixed limit, to compare with."""

    limit: int
    in_flight: int = 0

    def started(self) -> int:
        self.in_flight += 1
        return 0

    def ended(self, token: int, signal: Signal) -> None:
        self.in_flight -= 1


@dataclass
class World:
    """Workers that always have a line to send, one backend, and a clock."""

    backend: Backend
    workers: list[Concurrency | Fixed] = field(default_factory=list)
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
        self._random = random.Random(11)

    def worker(self, ceiling: int) -> Concurrency:
        made = Concurrency(ceiling, lambda: self.now)
        self.workers.append(made)
        return made

    def run(self, seconds: float) -> "World":
        """Let time pass; the counts cover only this time."""
        self._reset()
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self._step()
        self.now = end
        return self

    def answer(self, lines: int) -> float:
        """Let time pass until this number of lines is answered; return the seconds."""
        self._reset()
        began = self.now
        while self.answered < lines:
            self._step()
        return self.now - began

    def _reset(self) -> None:
        self.answered = self.refused = 0
        self.busy_seconds = 0.0
        for worker in self.workers:
            self._send_from(worker)

    def _step(self) -> None:
        at, _, act = heapq.heappop(self._events)
        self.busy_seconds += self.serving * (at - self.now)
        self.now = at
        act()

    def rest(self, seconds: float) -> None:
        """Answer the requests in flight, then let time pass without a new request."""
        self.is_resting = True
        self.run(seconds)
        assert not self._events
        self.is_resting = False

    def _send_from(self, worker: Concurrency | Fixed) -> None:
        while not self.is_resting and worker.in_flight < worker.limit:
            token = worker.started()
            if self.backend.network:
                self._at(self._network(), partial(self._arrive, worker, token))
            else:
                self._arrive(worker, token)

    def _network(self) -> float:
        mean = self.backend.network
        return self._random.expovariate(1 / mean) if mean else 0.0

    def _arrive(self, worker: Concurrency | Fixed, token: int) -> None:
        backend = self.backend
        is_full = self.serving >= backend.slots and len(self._waiting) >= backend.queue
        if is_full or self._random.random() < backend.refuses:
            self.refused += 1
            seconds = backend.refusal_seconds + self._network()
            self._at(seconds, lambda: self._refuse(worker, token))
        elif self.serving >= backend.slots:
            self._waiting.append(lambda: self._serve(worker, token))
        else:
            self._serve(worker, token)

    def _serve(self, worker: Concurrency | Fixed, token: int) -> None:
        self.serving += 1
        self._at(self.backend.latency(self.serving), lambda: self._answer(worker, token))

    def _answer(self, worker: Concurrency | Fixed, token: int) -> None:
        self.serving -= 1
        while self._waiting and self.serving < self.backend.slots:
            self._waiting.pop(0)()
        self._at(self._network(), lambda: self._answered(worker, token))

    def _answered(self, worker: Concurrency | Fixed, token: int) -> None:
        self.answered += 1
        worker.ended(token, Signal.GOOD)
        self._send_from(worker)

    def _refuse(self, worker: Concurrency | Fixed, token: int) -> None:
        worker.ended(token, Signal.REFUSED)
        # As a lane does: a line that is refused although it was alone in flight is tried again, and
        # no other line meanwhile.
        pause = 0.0 if worker.in_flight else self.backend.retry_after
        self._at(pause, lambda: self._send_from(worker))

    def _at(self, pause: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + pause, next(self._numbers), act))


# Seconds until a worker has found the limit of a backend.
SETTLING = 2.0


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


def a_tail(median: float) -> Callable[[int], float]:
    """Lognormal latencies: one in a hundred takes ten times the median."""
    draw = random.Random(7)
    return lambda serving: median * math.exp(draw.gauss(0, 1))


LINES = 20_000


def assert_as_good_as_fixed(backend: Callable[[], Backend], limit: int, workers: int = 1) -> None:
    """LINES lines take hardly longer than at a fixed limit, and few requests are refused."""
    world = World(backend())
    for _ in range(workers):
        world.worker(512 // workers)
    # The excess of the first limit is refused.
    answered = world.run(SETTLING).answered
    seconds = world.answer(LINES - answered)
    assert world.refused <= 0.05 * world.answered
    fixed = World(backend(), [Fixed(limit)])
    assert fixed.answer(LINES) / (SETTLING + seconds) >= 0.95


@pytest.mark.parametrize("latency", [0.05, 0.5])
@pytest.mark.parametrize("slots", [1, 4, 16, 64, 256])
def test_a_backend_that_refuses_is_used_as_at_the_best_fixed_limit(
    slots: int, latency: float
) -> None:
    assert_as_good_as_fixed(
        lambda: Backend(slots, latency=lambda serving: latency, network=0.001), slots
    )


@pytest.mark.parametrize("slots", [4, 64])
def test_so_is_one_whose_answers_take_very_different_times(slots: int) -> None:
    assert_as_good_as_fixed(lambda: Backend(slots, latency=a_tail(0.1), network=0.001), slots)


@pytest.mark.parametrize("slots", [16, 64, 256])
@pytest.mark.parametrize("workers", [2, 4, 8])
def test_so_is_one_that_several_workers_share(slots: int, workers: int) -> None:
    assert_as_good_as_fixed(lambda: Backend(slots, network=0.001), slots, workers)


def test_so_is_one_that_refuses_late() -> None:
    assert_as_good_as_fixed(lambda: Backend(64, network=0.001, refusal_seconds=0.1), 64)


@pytest.mark.parametrize("workers", [1, 4])
def test_so_is_one_that_gets_slower_and_refuses_nothing(workers: int) -> None:
    def slower(serving: int) -> float:
        return 0.1 * max(1.0, serving / 64)

    assert_as_good_as_fixed(lambda: Backend(latency=slower), 64, workers)


@pytest.mark.parametrize("latency", [0.05, 0.5])
@pytest.mark.parametrize("workers", [1, 4])
def test_slots_that_halve_and_double_are_followed(workers: int, latency: float) -> None:
    world = World(Backend(64, latency=lambda serving: latency, network=0.001))
    for _ in range(workers):
        world.worker(512 // workers)
    world.run(SETTLING)
    for slots in (32, 64, 128, 64):
        world.backend.slots = slots
        seconds = world.answer(LINES)
        assert world.refused <= 0.05 * world.answered
        seconds_fixed = LINES * (latency + 2 * 0.001) / slots
        assert seconds_fixed / seconds >= 0.95


def test_a_backend_that_refuses_a_share_of_all_requests_is_not_throttled_to_one() -> None:
    world = World(Backend(refuses=0.01))
    world.worker(64)
    seconds = world.answer(LINES)
    assert LINES * 0.1 / 64 / seconds >= 0.8


def test_a_burst_of_refusals_ends_at_the_slots_of_the_backend() -> None:
    world = World(Backend(slots=37))
    worker = world.worker(512)
    world.run(0.01)
    assert worker.limit == 37
    assert world.refused == 256 - 37


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
    worker.ended(tokens[0], Signal.TIMEOUT)
    after = worker.limit
    for token in tokens[1:]:
        worker.ended(token, Signal.TIMEOUT)
    assert worker.limit == after < 50
    worker.ended(worker.started(), Signal.TIMEOUT)
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


def run_beside_live_calls(world: World, ceilings: range, seconds: float) -> tuple[int, int]:
    """Let time pass while live calls move the ceiling four times a second; answers and refusals."""
    draw, answered, refused = random.Random(3), 0, 0
    (worker,) = world.workers
    assert isinstance(worker, Concurrency)
    for _ in range(int(seconds * 4)):
        worker.ceiling = draw.choice(ceilings)
        world.run(0.25)
        answered, refused = answered + world.answered, refused + world.refused
    return answered, refused


@pytest.mark.parametrize("latency", [0.1, 1.0, 3.0])
class TestBesideLiveCalls:
    def test_a_backend_that_takes_all_gets_what_they_leave(self, latency: float) -> None:
        world = World(Backend(latency=lambda serving: latency))
        world.worker(256)
        run_beside_live_calls(world, range(224, 257), 20)
        answered, _ = run_beside_live_calls(world, range(224, 257), 30)
        assert answered >= 0.95 * 240 * 30 / latency

    def test_a_backend_with_more_capacity_is_followed(self, latency: float) -> None:
        world = World(Backend(64, latency=lambda serving: latency, network=0.001))
        world.worker(256)
        run_beside_live_calls(world, range(200, 257), 20)
        world.backend.slots = 128
        # Rounds of answers lead there.
        run_beside_live_calls(world, range(200, 257), 10 + 20 * latency)
        answered, refused = run_beside_live_calls(world, range(200, 257), 10)
        assert answered >= 0.9 * 128 * 10 / latency
        assert refused <= 0.05 * answered

    def test_a_limit_that_they_cut_is_remembered(self, latency: float) -> None:
        world = World(Backend(28, latency=lambda serving: latency, network=0.001))
        world.worker(32)
        run_beside_live_calls(world, range(20, 33), 20)
        answered, refused = run_beside_live_calls(world, range(20, 33), 30)
        assert answered >= 0.9 * 26 * 30 / latency
        assert refused <= 0.05 * answered


def test_a_ceiling_that_does_not_reach_the_limit_changes_nothing() -> None:
    backend = Backend(64, network=0.001)
    world, quiet = World(backend), World(backend)
    world.worker(256), quiet.worker(256)
    alone = sum(quiet.run(0.25).answered for _ in range(40))
    assert run_beside_live_calls(world, range(250, 257), 10)[0] == alone


def test_a_refusal_while_the_limit_is_cut_is_learned_from() -> None:
    world = World(Backend(64, network=0.001))
    worker = world.worker(256)
    world.run(5)
    worker.ceiling = 40
    world.backend.slots = 30
    world.run(1)
    worker.ceiling = 256
    assert worker.limit <= 31


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

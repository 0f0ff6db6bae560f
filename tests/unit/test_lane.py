"""How one process treats one backend: bounded, patient, and leaving it alone while it is broken."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from xalen_batch.backends.contract import Answered, Outcome, Refused, Request, Retryable, Usage
from xalen_batch.backends.lane import Circuit, Exhausted, Lane, NotRun, pause_before_retry
from xalen_batch.catalog import CHAT

REQUEST = Request(CHAT, b"{}", "req_1")
OK = Answered(200, b"{}", Usage(1, 1))
BROKEN = Retryable("HTTP 500", status=500)
BUSY = Retryable("HTTP 429", status=429, is_overload=True)


class Script:
    """A backend that answers as told, one outcome after the other, the last for ever."""

    def __init__(self, *outcomes: Outcome, gate: asyncio.Event | None = None) -> None:
        self.outcomes = list(outcomes)
        self.gate = gate
        self.sent = 0
        self.in_flight = 0
        self.most_in_flight = 0

    async def send(self, request: Request) -> Outcome:
        self.sent += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        self.in_flight -= 1
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]

    async def close(self) -> None:
        return


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


@pytest.fixture(autouse=True)
def _no_waiting(configure: Callable[..., None]) -> None:
    configure(retry_base=0.001, retry_cap=0.001, circuit_failures=20, circuit_pause=60, max_attempts=3)


def test_an_answer_ends_the_line_at_the_first_attempt() -> None:
    async def main() -> None:
        backend = Script(OK)
        assert await Lane(backend, 1).run(REQUEST, asyncio.Event()) == OK
        assert backend.sent == 1

    run(main)


def test_a_refusal_is_not_tried_again() -> None:
    async def main() -> None:
        backend = Script(Refused(400, b"{}"))
        assert await Lane(backend, 1).run(REQUEST, asyncio.Event()) == Refused(400, b"{}")
        assert backend.sent == 1

    run(main)


def test_a_failure_is_tried_again_until_the_answer() -> None:
    async def main() -> None:
        backend = Script(BROKEN, BROKEN, OK)
        assert await Lane(backend, 1).run(REQUEST, asyncio.Event()) == OK
        assert backend.sent == 3

    run(main)


def test_attempts_are_limited() -> None:
    async def main() -> None:
        backend = Script(BROKEN)
        assert await Lane(backend, 1).run(REQUEST, asyncio.Event()) == Exhausted(BROKEN, 3)
        assert backend.sent == 3

    run(main)


def test_being_told_to_wait_costs_no_attempt() -> None:
    async def main() -> None:
        backend = Script(*[BUSY] * 10, OK)
        assert await Lane(backend, 1).run(REQUEST, asyncio.Event()) == OK
        assert backend.sent == 11

    run(main)


def test_a_backend_that_is_not_there_costs_no_attempt(configure: Callable[..., None]) -> None:
    configure(retry_base=0.001, retry_cap=0.001, circuit_failures=1_000, max_attempts=3)
    away = Retryable("No connection to the backend could be made.", is_unreachable=True)

    async def main() -> None:
        assert await Lane(Script(*[away] * 20, OK), 1).run(REQUEST, asyncio.Event()) == OK

    run(main)


def test_pauses_double_up_to_the_cap(configure: Callable[..., None]) -> None:
    configure(retry_base=0.001, retry_cap=10)
    longest = {attempt: max(pause_before_retry(BUSY, attempt) for _ in range(200)) for attempt in (1, 5, 1_000_000)}
    assert longest[1] <= 0.001 < longest[5] <= 0.016 < longest[1_000_000] <= 10


def test_no_more_requests_than_the_limit_are_in_flight() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        backend = Script(OK, gate=gate)
        lane = Lane(backend, 7)
        lines = [asyncio.ensure_future(lane.run(REQUEST, asyncio.Event())) for _ in range(50)]
        while backend.in_flight < 7:
            await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*lines) == [OK] * 50
        assert backend.most_in_flight == 7

    run(main)


def test_a_stopped_run_starts_no_line() -> None:
    async def main() -> None:
        stopped = asyncio.Event()
        stopped.set()
        backend = Script(OK)
        assert await Lane(backend, 1).run(REQUEST, stopped) == NotRun()
        assert backend.sent == 0

    run(main)


def test_a_stop_ends_the_pause_before_a_retry(configure: Callable[..., None]) -> None:
    configure(retry_base=1000, retry_cap=1000)

    async def main() -> None:
        stopped = asyncio.Event()
        backend = Script(Retryable("HTTP 503", status=503, retry_after=1000))
        line = asyncio.ensure_future(Lane(backend, 1).run(REQUEST, stopped))
        while not backend.sent:
            await asyncio.sleep(0)
        stopped.set()
        assert await asyncio.wait_for(line, 5) == NotRun()

    run(main)


def test_a_broken_backend_is_left_alone_and_its_lines_go_back_unrun(configure: Callable[..., None]) -> None:
    configure(retry_base=0.001, retry_cap=0.001, circuit_failures=4, circuit_pause=60, max_attempts=3)

    async def main() -> None:
        backend = Script(BROKEN)
        lane = Lane(backend, 1)
        outcomes = [await lane.run(REQUEST, asyncio.Event()) for _ in range(5)]
        assert outcomes == [Exhausted(BROKEN, 3), *[NotRun()] * 4]
        assert backend.sent == 4
        assert 0 < lane.circuit.pause <= 60
        assert not lane.has_room

    run(main)


def test_success_between_failures_keeps_the_circuit_closed(configure: Callable[..., None]) -> None:
    configure(circuit_failures=3)
    circuit = Circuit()
    for _ in range(50):
        circuit.failed()
        circuit.failed()
        circuit.succeeded()
        for _ in range(20):
            circuit.sent()
    assert circuit.pause == 0


def test_retries_beyond_their_budget_open_the_circuit(configure: Callable[..., None]) -> None:
    configure(circuit_failures=1_000_000)
    circuit = Circuit()
    for _ in range(1_000):
        circuit.sent()
        circuit.failed()
        circuit.succeeded()
    assert circuit.pause > 0


@pytest.mark.parametrize(("asked", "least", "most"), [(None, 0, 0.001), (7, 7, 7.001), (10_000, 120, 120.001)])
def test_the_pause_is_what_the_backend_asked_for_within_reason(asked: float | None, least: float, most: float) -> None:
    for _ in range(20):
        assert least <= pause_before_retry(Retryable("HTTP 429", retry_after=asked), 1) <= most


def test_a_lane_asks_for_tasks_until_a_full_limit_waits_behind_those_in_flight() -> None:
    async def main() -> None:
        lane = Lane(Script(OK), 10)
        lane.unfinished = 19
        assert lane.has_room
        lane.unfinished = 20
        assert not lane.has_room
        lane.left(None)
        assert lane.has_room

    run(main)

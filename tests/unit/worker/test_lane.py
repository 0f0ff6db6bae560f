"""A lane: bounded requests in flight, pauses before retries, and a circuit breaker."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from xalen_batch import ids
from xalen_batch.backends.contract import (
    Answered,
    Ended,
    Exhausted,
    NotRun,
    Outcome,
    Refused,
    Request,
    Retryable,
)
from xalen_batch.endpoints.names import CHAT
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models.line_attempts import Attempt
from xalen_batch.ratelimit.backend import Rates, estimate
from xalen_batch.worker.circuit_breaker import Admission, Source, State
from xalen_batch.worker.lane import BACKLOG, Lane
from xalen_batch.worker.outcome import pause_before_retry

OK = Answered(200, b"{}", Usage(1, 1))
BROKEN = Retryable("HTTP 500", status=500)
BUSY = Retryable("HTTP 429", status=429, is_overload=True)


@dataclass(frozen=True)
class FakeLine:
    number: int

    @property
    def request(self) -> Request:
        return Request(CHAT, b"{}", f"req_{self.number}")


@dataclass(eq=False)
class Lines:
    """The run of a number of lines, with their outcomes."""

    count: int = 1
    is_stopped: bool = False
    source: Source = field(default_factory=lambda: Source.of(ids.new(), ids.new()))
    outcomes: dict[int, Ended | NotRun] = field(default_factory=dict)
    attempts: list[tuple[int, Attempt]] = field(default_factory=list)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    def over(self, line: FakeLine, outcome: Ended | NotRun) -> None:
        assert line.number not in self.outcomes
        self.outcomes[line.number] = outcome
        if len(self.outcomes) == self.count:
            self.is_over.set()

    def attempt_failed(self, line: FakeLine, attempt: Attempt) -> None:
        assert line.number not in self.outcomes
        self.attempts.append((line.number, attempt))

    def start(self, lane: Lane) -> "Lines":
        lane.add(self, [FakeLine(number) for number in range(self.count)])
        return self

    async def run(self, lane: Lane) -> list[Ended | NotRun]:
        """Run the lines; return their outcomes in line order."""
        async with asyncio.timeout(10):
            await self.start(lane).is_over.wait()
        return [self.outcomes[number] for number in range(self.count)]


class Script:
    """A backend that gives prepared outcomes one after the other, and repeats the last.

    From the second request on, it waits for the gate.
    """

    def __init__(self, *outcomes: Outcome, gate: asyncio.Event | None = None) -> None:
        self.outcomes = list(outcomes)
        self.gate = gate
        self.sent = 0
        self.order: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0

    async def send(self, request: Request) -> Outcome:
        self.sent += 1
        self.order.append(request.request_id)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if self.gate is not None and self.sent > 1:
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
    configure(
        retry_base=0.001, retry_cap=0.001, circuit_failures=20, circuit_pause=60, max_attempts=3
    )


def test_an_answer_ends_the_line_at_the_first_attempt() -> None:
    async def main() -> None:
        backend = Script(OK)
        assert await Lines().run(Lane(backend, 1)) == [OK]
        assert backend.sent == 1

    run(main)


def test_a_refusal_is_not_tried_again() -> None:
    async def main() -> None:
        backend = Script(Refused(400, b"{}"))
        assert await Lines().run(Lane(backend, 1)) == [Refused(400, b"{}")]
        assert backend.sent == 1

    run(main)


def test_a_failure_is_tried_again_until_the_answer() -> None:
    async def main() -> None:
        backend = Script(BROKEN, BROKEN, OK)
        assert await Lines().run(Lane(backend, 1)) == [OK]
        assert backend.sent == 3

    run(main)


def test_each_failed_attempt_is_told_and_no_other() -> None:
    async def main() -> None:
        lines = Lines()
        busy = replace(BUSY, server=2)
        assert await lines.run(Lane(Script(busy, BROKEN, OK), 1)) == [OK]
        told = [(line, one.error, one.status, one.server) for line, one in lines.attempts]
        assert told == [(0, "busy", 429, 2), (0, "server_error", 500, 1)]
        good = Lines(2)
        await good.run(Lane(Script(OK, Refused(400, b"{}")), 1))
        assert good.attempts == []

    run(main)


def test_a_line_that_is_returned_has_told_its_attempts(configure: Callable[..., None]) -> None:
    configure(circuit_failures=2)

    async def main() -> None:
        lines = Lines(3)
        outcomes = await lines.run(Lane(Script(BROKEN), 1))
        assert set(map(type, outcomes)) == {NotRun}
        assert len(lines.attempts) == 2

    run(main)


def test_attempts_are_limited() -> None:
    async def main() -> None:
        backend = Script(BROKEN)
        assert await Lines().run(Lane(backend, 1)) == [Exhausted(BROKEN, 3)]
        assert backend.sent == 3

    run(main)


def test_being_told_to_wait_costs_no_attempt() -> None:
    async def main() -> None:
        backend = Script(*[BUSY] * 10, OK)
        assert await Lines().run(Lane(backend, 1)) == [OK]
        assert backend.sent == 11

    run(main)


def test_a_backend_that_is_not_there_costs_no_attempt(configure: Callable[..., None]) -> None:
    configure(retry_base=0.001, retry_cap=0.001, circuit_failures=1_000, max_attempts=3)
    away = Retryable("No connection to the backend could be made.", is_unreachable=True)

    async def main() -> None:
        assert await Lines().run(Lane(Script(*[away] * 20, OK), 1)) == [OK]

    run(main)


def test_pauses_double_up_to_the_cap(configure: Callable[..., None]) -> None:
    configure(retry_base=0.001, retry_cap=10)
    longest = {
        attempt: max(pause_before_retry(BUSY, attempt) for _ in range(200))
        for attempt in (1, 5, 1_000_000)
    }
    assert longest[1] <= 0.001 < longest[5] <= 0.016 < longest[1_000_000] <= 10


def test_without_a_backoff_only_what_the_backend_asks_for_is_waited_for() -> None:
    assert pause_before_retry(BUSY, 0) == 0
    asks = Retryable("HTTP 429", status=429, is_overload=True, retry_after=3)
    assert pause_before_retry(asks, 0) == 3


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0)


def test_no_more_requests_than_the_limit_are_in_flight() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        backend = Script(OK, gate=gate)
        work, lane = Lines(50), Lane(backend, 7)
        work.start(lane)
        await until(lambda: backend.in_flight == 7)
        gate.set()
        await work.is_over.wait()
        assert backend.most_in_flight == 7
        assert lane.unfinished == 0

    run(main)


def test_lines_of_a_batch_are_sent_in_the_order_in_which_they_came() -> None:
    async def main() -> None:
        backend = Script(OK)
        first, lane = Lines(3), Lane(backend, 1)
        first.start(lane)
        await Lines(2, source=first.source).run(lane)
        assert backend.order == ["req_0", "req_1", "req_2", "req_0", "req_1"]

    run(main)


def test_batches_of_an_account_take_turns() -> None:
    async def main() -> None:
        backend = Script(OK)
        first, lane = Lines(5), Lane(backend, 1)
        first.start(lane)
        await Lines(2, source=Source(first.source.account_id, ids.new())).run(lane)
        assert backend.order[:4] == ["req_0", "req_0", "req_1", "req_1"]
        await until(first.is_over.is_set)

    run(main)


def test_batches_of_an_account_get_no_more_turns_than_another_account() -> None:
    async def main() -> None:
        backend = Script(OK)
        lane, account = Lane(backend, 1), ids.new()
        for _ in range(5):
            Lines(4, source=Source(account, ids.new())).start(lane)
        await Lines(3).run(lane)
        # The other account's third line goes out as the sixth of all.
        assert len(backend.order) <= 7
        await until(lambda: not lane.unfinished)

    run(main)


def test_accounts_take_turns() -> None:
    async def main() -> None:
        backend = Script(OK)
        first, lane = Lines(3), Lane(backend, 1)
        first.start(lane)
        await Lines(2).run(lane)
        await until(first.is_over.is_set)
        assert backend.order == ["req_0", "req_0", "req_1", "req_1", "req_2"]

    run(main)


def test_an_account_without_an_answer_leaves_half_of_the_requests_to_others() -> None:
    class Hanging(Script):
        async def send(self, request: Request) -> Outcome:
            return (
                await super().send(request)
                if request.body == b"quick"
                else await asyncio.Event().wait()
            )

    @dataclass(frozen=True)
    class Quick(FakeLine):
        @property
        def request(self) -> Request:
            return Request(CHAT, b"quick", f"quick_{self.number}")

    async def main() -> None:
        lane = Lane(Hanging(OK), 16)
        hanging, quick = Lines(1_000), Lines(100)
        hanging.start(lane)
        assert lane.free_by_account()[None] == 32
        assert lane.free_by_account()[hanging.source.account_id] == 0
        lane.add(quick, [Quick(number) for number in range(100)])
        await until(quick.is_over.is_set)
        assert list(quick.outcomes.values()) == [OK] * 100
        hanging.is_stopped = True
        lane.stop(hanging)
        lane.cut(hanging)
        await until(hanging.is_over.is_set)

    run(main)


def test_a_line_that_is_tried_again_goes_before_those_that_wait() -> None:
    async def main() -> None:
        backend = Script(BUSY, OK)
        await Lines(200).run(Lane(backend, 1))
        assert backend.order.count("req_0") == 2
        assert backend.order.index("req_0", 1) < 200

    run(main)


def test_a_stopped_work_starts_no_line() -> None:
    async def main() -> None:
        backend = Script(OK)
        assert await Lines(3, is_stopped=True).run(Lane(backend, 1)) == [NotRun()] * 3
        assert backend.sent == 0

    run(main)


def test_a_stop_gives_back_what_waits_and_lets_finish_what_is_in_flight() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        backend = Script(OK, gate=gate)
        stopped, other, lane = Lines(3), Lines(2), Lane(backend, 1)
        stopped.start(lane)
        other.start(lane)
        await until(lambda: backend.in_flight == 1)
        stopped.is_stopped = True
        lane.stop(stopped)
        assert stopped.outcomes == {1: NotRun(), 2: NotRun()}
        gate.set()
        await until(lambda: stopped.is_over.is_set() and other.is_over.is_set())
        assert stopped.outcomes[0] == OK
        assert list(other.outcomes.values()) == [OK, OK]

    run(main)


def test_a_cut_gives_up_what_is_in_flight_and_the_others_go_on() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        backend = Script(OK, gate=gate)
        cut, other, lane = Lines(2), Lines(3), Lane(backend, 2)
        cut.start(lane)
        other.start(lane)
        await until(lambda: backend.in_flight == 2)
        cut.is_stopped = True
        lane.cut(cut)
        await until(cut.is_over.is_set)
        assert list(cut.outcomes.values()) == [NotRun(), NotRun()]
        gate.set()
        await until(other.is_over.is_set)
        assert list(other.outcomes.values()) == [OK] * 3
        assert lane.unfinished == 0

    run(main)


def test_a_stop_ends_the_pause_before_a_retry(configure: Callable[..., None]) -> None:
    configure(retry_base=1000, retry_cap=1000)

    async def main() -> None:
        backend = Script(Retryable("HTTP 503", status=503, retry_after=1000))
        work, lane = Lines(), Lane(backend, 1)
        work.start(lane)
        await until(lambda: backend.sent == 1 and backend.in_flight == 0)
        await asyncio.sleep(0)
        work.is_stopped = True
        lane.stop(work)
        assert work.outcomes == {0: NotRun()}

    run(main)


def test_a_backend_that_raises_costs_its_line_and_no_other() -> None:
    class Raising(Script):
        async def send(self, request: Request) -> Outcome:
            if request.request_id == "req_1":
                raise ValueError("a bug")
            return await super().send(request)

    async def main() -> None:
        first, second, third = await Lines(3).run(Lane(Raising(OK), 1))
        assert (first, third) == (OK, OK)
        assert isinstance(second, Exhausted)

    run(main)


def test_a_broken_backend_is_left_alone_and_its_lines_go_back_unrun(
    configure: Callable[..., None],
) -> None:
    configure(
        retry_base=0.001, retry_cap=0.001, circuit_failures=4, circuit_pause=60, max_attempts=3
    )

    async def main() -> None:
        backend = Script(BROKEN)
        lane, source = Lane(backend, 1), Lines().source
        assert await Lines(1, source=source).run(lane) == [Exhausted(BROKEN, 3)]
        assert await Lines(4, source=source).run(lane) == [NotRun()] * 4
        assert backend.sent == 4
        assert 0 < lane.circuit.pause_of(source) <= 60
        # One line of another batch may be sent as a probe, and none of this batch.
        assert lane.circuit.admission == Admission(1, frozenset({source}))

    run(main)


@pytest.mark.parametrize(
    ("asked", "least", "most"), [(None, 0, 0.001), (7, 7, 7.001), (10_000, 120, 120.001)]
)
def test_the_pause_is_what_the_backend_asked_for_within_reason(
    asked: float | None, least: float, most: float
) -> None:
    for _ in range(20):
        assert least <= pause_before_retry(Retryable("HTTP 429", retry_after=asked), 1) <= most


def test_a_lane_has_room_until_a_full_limit_waits_behind_those_in_flight() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        lane = Lane(Script(OK, gate=gate), 10)
        assert lane.free_capacity == 20
        work = Lines(15).start(lane)
        await until(lambda: lane.unfinished == 14)
        assert lane.free_capacity == 6
        # The queue is more than half full: no claim yet.
        lane.add(work, [FakeLine(15)])
        assert lane.free_capacity == 0
        gate.set()
        await until(lambda: lane.unfinished == 0)

    run(main)


def test_a_lane_asks_for_more_once_while_some_lines_still_wait() -> None:
    async def main() -> None:
        asked: list[int] = []
        lane = Lane(
            Script(OK), 10, on_capacity=lambda: asked.append(lane.unfinished), clock=lambda: 0.0
        )
        await Lines(40).run(lane)
        assert asked == [14]
        # The engine claims again anyway after a claim that left free capacity.
        await Lines(3).run(lane)
        assert asked == [14]
        await Lines(20).run(lane)
        assert asked == [14, 14]

    run(main)


def test_a_busy_backend_gets_fewer_requests_and_is_not_taken_for_broken(
    configure: Callable[..., None],
) -> None:
    configure(retry_base=0.001, retry_cap=0.001, circuit_failures=4, circuit_pause=60)

    async def main() -> None:
        backend = Script(OK, *[BUSY] * 30, OK)
        lane = Lane(backend, 64)
        assert lane.limit == 32
        # Lines beyond those of the lower limit are returned.
        assert set(await Lines(100).run(lane)) == {OK, NotRun()}
        assert lane.limit < 32
        assert lane.circuit.state is State.CLOSED

    run(main)


def test_a_line_refused_although_it_was_alone_is_the_next_of_its_account_to_be_tried(
    configure: Callable[..., None],
) -> None:
    configure(retry_base=1000, retry_cap=1000)

    async def main() -> None:
        backend = Script(BUSY, OK)
        first, lane = Lines(3), Lane(backend, 1)
        second = Lines(2, source=Source(first.source.account_id, ids.new()))
        first.start(lane)
        second.start(lane)
        await until(lambda: backend.sent == 1 and backend.in_flight == 0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert backend.sent == 1
        # A stopped run has no retry to wait for.
        first.is_stopped = True
        lane.stop(first)
        await until(second.is_over.is_set)
        assert list(second.outcomes.values()) == [OK, OK]
        assert list(first.outcomes.values()) == [NotRun()] * 3

    run(main)


def test_a_line_refused_although_it_was_alone_holds_up_no_other_account(
    configure: Callable[..., None],
) -> None:
    configure(retry_base=1000, retry_cap=1000)

    async def main() -> None:
        lane, first = Lane(Script(BUSY, OK), 1), Lines(3)
        first.start(lane)
        assert await Lines(2).run(lane) == [OK, OK]
        assert first.outcomes == {}
        first.is_stopped = True
        lane.stop(first)

    run(main)


def test_workers_share_what_a_backend_may_get() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        backend = Script(OK, gate=gate)
        work, lane = Lines(100), Lane(backend, 12, workers=4)
        work.start(lane)
        await until(lambda: backend.in_flight == 3)
        lane.share(2)
        await until(lambda: backend.in_flight == 6)
        lane.share(100)
        assert lane.limit == 1
        gate.set()
        await work.is_over.wait()
        assert backend.most_in_flight == 6

    run(main)


class Gate:
    """Rate limits that grant one request at a time, on command."""

    def __init__(self) -> None:
        self.turns: list[asyncio.Future[None]] = []
        self.settled: list[tuple[int, int | None]] = []
        self.wait = 0.0

    async def admit(self, tokens: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self.turns.append(turn)
        await turn

    def settle(self, estimated: int, used: int | None) -> None:
        self.settled.append((estimated, used))

    def let_pass(self) -> None:
        next(turn for turn in self.turns if not turn.done()).set_result(None)


def test_a_line_is_sent_when_its_rate_allows_and_its_tokens_are_settled_by_its_usage() -> None:
    async def main() -> None:
        gate, backend = Gate(), Script(OK, BROKEN, OK)
        work, lane = Lines(2), Lane(backend, 4, rates=cast(Rates, gate))
        work.start(lane)
        await until(lambda: len(gate.turns) == 2)
        assert backend.sent == 0
        expected = estimate(b"{}", CHAT)
        gate.let_pass()
        await until(lambda: gate.settled == [(expected, 2)])
        gate.let_pass()
        # The second fails, and its next attempt needs a turn of its own.
        await until(lambda: len(gate.turns) == 3)
        assert gate.settled[1:] == [(expected, None)]
        gate.let_pass()
        await until(work.is_over.is_set)
        assert list(work.outcomes.values()) == [OK, OK]

    run(main)


def test_a_stop_does_not_wait_for_a_rate() -> None:
    async def main() -> None:
        gate, backend = Gate(), Script(OK)
        work, lane = Lines(3), Lane(backend, 4, rates=cast(Rates, gate))
        work.start(lane)
        await until(lambda: len(gate.turns) == 2)
        work.is_stopped = True
        lane.stop(work)
        await until(work.is_over.is_set)
        assert list(work.outcomes.values()) == [NotRun()] * 3
        assert (backend.sent, lane.unfinished) == (0, 0)

    run(main)


def test_a_lane_that_waits_for_its_rate_has_no_room() -> None:
    async def main() -> None:
        gate = Gate()
        lane = Lane(Script(OK), 10, rates=cast(Rates, gate))
        assert lane.free_capacity > 0
        gate.wait = 10
        assert lane.free_capacity == 0

    run(main)


def test_a_line_whose_turn_comes_when_the_backend_is_left_alone_goes_back(
    configure: Callable[..., None],
) -> None:
    configure(circuit_failures=1, circuit_pause=60)

    async def main() -> None:
        gate, backend = Gate(), Script(OK)
        work, lane = Lines(1), Lane(backend, 1, rates=cast(Rates, gate))
        work.start(lane)
        await until(lambda: len(gate.turns) == 1)
        lane.circuit.failed(work.source)
        gate.let_pass()
        await until(work.is_over.is_set)
        assert work.outcomes == {0: NotRun()}
        assert (backend.sent, gate.settled) == (0, [(estimate(b"{}", CHAT), None)])

    run(main)


def test_accounts_take_turns_at_a_rate_and_do_not_wait_behind_all_of_another() -> None:
    async def main() -> None:
        gate, backend = Gate(), Script(OK)
        lane, first, second = Lane(backend, 40, rates=cast(Rates, gate)), Lines(10), Lines(2)
        gate.wait = BACKLOG + 0.01
        first.start(lane)
        second.start(lane)
        assert gate.turns == []
        gate.wait = 0.0
        await until(lambda: len(gate.turns) > 4)
        for _ in range(4):
            gate.let_pass()
        await until(second.is_over.is_set)
        first.is_stopped = True
        lane.stop(first)
        await until(first.is_over.is_set)

    run(main)

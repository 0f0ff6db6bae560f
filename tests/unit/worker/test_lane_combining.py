"""Lines of embeddings share requests, and no line suffers from its neighbours."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch import ids
from xalen_batch.backends.contract import (
    NOT_RUN,
    Answered,
    Ended,
    Exhausted,
    NotRun,
    Outcome,
    Refused,
    Request,
    Retryable,
)
from xalen_batch.endpoints.names import EMBEDDINGS
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models.line_attempts import Attempt
from xalen_batch.worker.circuit_breaker import Source
from xalen_batch.worker.lane import Lane

BUSY = Retryable("HTTP 429", status=429, is_overload=True)
AWAY = Retryable("no connection", is_unreachable=True)
BROKEN = Retryable("HTTP 500", status=500)
REFUSED = Refused(400, b'{"error":{}}')


@dataclass(frozen=True)
class Line:
    number: int
    input: Any
    fields: tuple[tuple[str, Any], ...] = ()

    @property
    def request(self) -> Request:
        body = {"model": "m", "input": self.input, **dict(self.fields)}
        return Request(EMBEDDINGS, orjson.dumps(body), f"req_{self.number}")


@dataclass(eq=False)
class Lines:
    """A run of lines, with their outcomes."""

    lines: list[Line]
    is_stopped: bool = False
    source: Source = field(default_factory=lambda: Source.of(ids.new(), ids.new()))
    outcomes: dict[int, Ended | NotRun] = field(default_factory=dict)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    def attempt_failed(self, line: Line, attempt: Attempt) -> None: ...

    def over(self, line: Line, outcome: Ended | NotRun) -> None:
        assert line.number not in self.outcomes
        self.outcomes[line.number] = outcome
        if len(self.outcomes) == len(self.lines):
            self.is_over.set()

    async def run(self, lane: Lane) -> list[Ended | NotRun]:
        lane.add(self, self.lines)
        async with asyncio.timeout(20):
            await self.is_over.wait()
        return [self.outcomes[line.number] for line in self.lines]


def texts(*inputs: Any, **fields: Any) -> Lines:
    return Lines([Line(number, each, tuple(fields.items())) for number, each in enumerate(inputs)])


class Server:
    """Embeds a text as its length. A text is refused if it has `bad` in it, and breaks the server
    if it has `ill`; `first` are the outcomes of the first requests.
    """

    def __init__(self, *first: Outcome, answers: int | None = None) -> None:
        self.first = list(first)
        self.answers = answers
        # The inputs of each request.
        self.asked: list[list[str]] = []
        self.gate: asyncio.Event | None = None

    async def send(self, request: Request) -> Outcome:
        body = orjson.loads(request.body)
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        self.asked.append(inputs)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if self.first:
            return self.first.pop(0)
        if any("ill" in each for each in inputs):
            return BROKEN
        if any("bad" in each for each in inputs):
            return REFUSED
        data = [{"index": n, "embedding": [len(each)]} for n, each in enumerate(inputs)]
        answer = orjson.dumps({"data": data[: self.answers], "usage": {}})
        return Answered(200, answer, Usage(10 * len(inputs)))

    async def close(self) -> None:
        return

    @property
    def sizes(self) -> list[int]:
        return [len(inputs) for inputs in self.asked]


def play(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


@pytest.fixture(autouse=True)
def _no_waiting(configure: Callable[..., None]) -> None:
    configure(
        retry_base=0.001, retry_cap=0.001, circuit_failures=200, circuit_pause=60, max_attempts=3
    )


def vectors(outcomes: Iterable[Ended | NotRun]) -> list[Any]:
    """The vectors of each answered line; other outcomes as they are."""
    return [
        [item["embedding"][0] for item in json.loads(outcome.body)["data"]]
        if isinstance(outcome, Answered)
        else outcome
        for outcome in outcomes
    ]


def test_lines_that_wait_together_are_one_request() -> None:
    async def main() -> None:
        server = Server()
        lane = Lane(server, 1, most_inputs=4)
        outcomes = await texts("a", "bb", ["c", "dd"], "e", "f").run(lane)
        assert vectors(outcomes) == [[1], [2], [1, 2], [1], [1]]
        assert server.asked == [["a", "bb", "c", "dd"], ["e", "f"]]
        assert [outcome.usage for outcome in outcomes if isinstance(outcome, Answered)] == [
            Usage(10),
            Usage(10),
            Usage(20),
            Usage(10),
            Usage(10),
        ]
        assert lane.unfinished == 0

    play(main)


def test_one_line_of_many_inputs_is_sent_as_it_is() -> None:
    async def main() -> None:
        server = Server()
        many = ["x"] * 9
        await texts("a", many, "b").run(Lane(server, 1, most_inputs=4))
        assert server.asked == [["a"], many, ["b"]]

    play(main)


def test_a_bound_of_1_combines_nothing() -> None:
    async def main() -> None:
        server = Server()
        await texts("a", "b", "c").run(Lane(server, 1))
        assert server.asked == [["a"], ["b"], ["c"]]

    play(main)


def test_long_texts_share_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xalen_batch.worker.combine.MOST_TOKENS", 5)

    async def main() -> None:
        server = Server()
        await texts("a b c", "d e", "f", "g h i j k l").run(Lane(server, 1, most_inputs=32))
        assert server.asked == [["a b c", "d e"], ["f"], ["g h i j k l"]]

    play(main)


def test_lines_of_other_parameters_or_of_another_task_are_apart() -> None:
    async def main() -> None:
        server = Server()
        lane = Lane(server, 1, most_inputs=32)
        fields = [{}, {"user": "me"}, {"dimensions": 2}, {"dimensions": 2}]
        one = Lines([Line(n, f"a{n}", tuple(each.items())) for n, each in enumerate(fields)])
        # The same batch, claimed as another task.
        other = Lines([Line(0, "b")], source=one.source)
        await asyncio.gather(one.run(lane), other.run(lane))
        assert server.asked == [["a0", "a1"], ["a2", "a3"], ["b"]]

    play(main)


def test_a_bad_line_alone_is_refused() -> None:
    async def main() -> None:
        server = Server()
        inputs = [f"text{n}" for n in range(32)]
        inputs[13] = "bad"
        outcomes = await texts(*inputs).run(Lane(server, 4, most_inputs=32))
        assert outcomes[13] == REFUSED
        assert all(isinstance(each, Answered) for n, each in enumerate(outcomes) if n != 13)
        # The group, and two halves on each of five levels.
        assert len(server.asked) == 11

    play(main)


def test_a_line_that_breaks_the_server_fails_alone_after_all_its_attempts() -> None:
    async def main() -> None:
        server = Server()
        inputs = [f"text{n}" for n in range(16)]
        inputs[5] = "ill"
        outcomes = await texts(*inputs).run(Lane(server, 4, most_inputs=32))
        assert outcomes[5] == Exhausted(BROKEN, 3)
        assert all(isinstance(each, Answered) for n, each in enumerate(outcomes) if n != 5)
        assert server.asked.count(["ill"]) == 3

    play(main)


def test_a_broken_server_costs_each_line_its_attempts_alone() -> None:
    async def main() -> None:
        server = Server()
        outcomes = await texts(*["ill"] * 8).run(Lane(server, 4, most_inputs=32))
        assert outcomes == [Exhausted(BROKEN, 3)] * 8
        assert server.sizes.count(1) == 8 * 3

    play(main)


@pytest.mark.parametrize("outcome", [BUSY, AWAY])
def test_a_group_stays_together_when_no_line_can_be_the_reason(outcome: Retryable) -> None:
    async def main() -> None:
        server = Server(outcome, outcome)
        outcomes = await texts(*["a"] * 8).run(Lane(server, 4, most_inputs=32))
        assert vectors(outcomes) == [[1]] * 8
        assert server.sizes == [8, 8, 8]

    play(main)


def test_a_timeout_of_a_group_halves_it() -> None:
    async def main() -> None:
        server = Server(Retryable("no answer in time", is_timeout=True))
        outcomes = await texts(*["a"] * 8).run(Lane(server, 4, most_inputs=32))
        assert vectors(outcomes) == [[1]] * 8
        assert server.sizes == [8, 4, 4]

    play(main)


def test_a_server_that_embeds_one_input_only_gets_one_at_a_time() -> None:
    async def main() -> None:
        server = Server(answers=1)
        lane = Lane(server, 1, most_inputs=4)
        outcomes = await texts(*["a"] * 20).run(lane)
        assert vectors(outcomes) == [[1]] * 20
        # Three answers to combined requests cannot be split, then no more are made.
        assert server.sizes == [4, 2, 1, 1, 2, 1, 1] + [1] * 16
        assert lane.free_by_account()[None] == 2

    play(main)


def test_a_stopped_run_gets_its_lines_back_and_others_go_on() -> None:
    async def main() -> None:
        server = Server()
        server.gate = asyncio.Event()
        lane = Lane(server, 2, most_inputs=4)
        stopped, other = texts(*["a"] * 12), texts(*["b"] * 4)
        running = [asyncio.create_task(each.run(lane)) for each in (stopped, other)]
        await asyncio.sleep(0.01)
        stopped.is_stopped = True
        lane.stop(stopped)
        assert len(stopped.outcomes) == 8
        lane.cut(stopped)
        assert await running[0] == [NOT_RUN] * 12
        server.gate.set()
        assert vectors(await running[1]) == [[1]] * 4
        assert lane.unfinished == 0

    play(main)


def test_a_run_that_stops_while_its_group_is_halved_gets_the_halves_back() -> None:
    async def main() -> None:
        server = Server()
        server.gate = asyncio.Event()
        lane = Lane(server, 1, most_inputs=4)
        run = texts("bad", "a", "b", "c")
        running = asyncio.create_task(run.run(lane))
        await asyncio.sleep(0.01)
        run.is_stopped = True
        lane.stop(run)
        server.gate.set()
        assert await running == [NOT_RUN] * 4
        assert len(server.asked) == 1

    play(main)


def test_limits_count_one_request() -> None:
    async def main() -> None:
        server = Server()
        rates = Rates()
        await texts(*["a"] * 32).run(Lane(server, 8, most_inputs=32, rates=rates))  # type: ignore[arg-type]
        assert (len(server.asked), rates.granted, rates.used) == (1, 1, [320])

    play(main)


class Rates:
    """Limits per minute that are never reached."""

    wait = 0.0

    def __init__(self) -> None:
        self.granted = 0
        self.used: list[int | None] = []

    async def admit(self, tokens: int) -> None:
        self.granted += 1

    def settle(self, expected: int, used: int | None) -> None:
        self.used.append(used)


def test_claims_are_as_large_as_the_requests() -> None:
    async def main() -> None:
        server = Server()
        lane = Lane(server, 4, most_inputs=8)
        # Four requests in flight and four behind them.
        assert lane.free_by_account() == {None: 64}
        # Lines that no request holds two of: the lane learns that.
        await texts(*[["a"] * 8] * 60).run(lane)
        assert lane.free_by_account()[None] < 20
        # A task's end teaches nothing, since the next claim may bring more.
        before = lane.free_by_account()[None]
        await texts("a").run(lane)
        assert lane.free_by_account()[None] == before

    play(main)


KINDS = st.sampled_from(["good", "good", "good", "bad", "ill"])


@given(
    st.lists(st.lists(KINDS, min_size=1, max_size=3), min_size=1, max_size=40),
    st.integers(1, 8),
    st.integers(1, 5),
    st.lists(st.sampled_from([BUSY, AWAY, BROKEN]), max_size=6),
)
def test_every_line_ends_once_and_as_it_would_alone(
    inputs: list[list[str]], most: int, limit: int, first: list[Outcome]
) -> None:
    async def main() -> None:
        server = Server(*first)
        lane = Lane(server, limit, most_inputs=most)
        run = texts(*inputs)
        outcomes = await run.run(lane)
        while NOT_RUN in outcomes:
            # The lane has returned what it would not send soon; another claim takes it.
            left = [n for n, outcome in enumerate(outcomes) if outcome == NOT_RUN]
            again = Lines([run.lines[n] for n in left], source=run.source)
            for n, outcome in zip(left, await again.run(lane), strict=True):
                outcomes[n] = outcome
        broken = first.count(BROKEN)
        for texts_of, outcome in zip(inputs, outcomes, strict=True):
            if "ill" in texts_of:
                assert isinstance(outcome, Exhausted)
            elif broken < 3 or not isinstance(outcome, Exhausted):
                expected = REFUSED if "bad" in texts_of else [len(each) for each in texts_of]
                assert vectors([outcome]) == [expected]
        assert lane.unfinished == 0

    play(main)

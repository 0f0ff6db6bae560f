"""Several servers of one model: which one gets a request, and what a failing server costs."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from xalen_batch.backends import replicas
from xalen_batch.backends.contract import (
    Answered,
    Outcome,
    Refused,
    Request,
    Retryable,
    Usage,
)
from xalen_batch.backends.replicas import FIRST_PAUSE, Replicas
from xalen_batch.endpoints.names import CHAT, RERANK

ANSWER = Answered(200, b"{}", Usage(1, 1))
DOWN = Retryable("No connection to the backend could be made.", is_unreachable=True)
BROKEN = Retryable("The connection to the backend failed: reset.")
LATE = Retryable("The backend did not answer in time.", is_timeout=True)
SICK = Retryable("Internal error", 500)
BUSY = Retryable("Busy", 503, is_overload=True)


class Server:
    """Answers with `outcome`; `hold` keeps its requests in flight."""

    def __init__(self) -> None:
        self.outcome: Outcome = ANSWER
        self.seen: list[Request] = []
        self.is_closed = False
        self.hold: asyncio.Event | None = None

    async def send(self, request: Request) -> Outcome:
        self.seen.append(request)
        if self.hold is not None:
            await self.hold.wait()
        return self.outcome

    async def close(self) -> None:
        self.is_closed = True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Pool:
    def __init__(self, count: int = 2) -> None:
        self.servers = {f"http://{name}:8000/v1": Server() for name in "abc"[:count]}
        self.clock = Clock()
        self.pool = Replicas("m", self.servers, self.clock)

    @property
    def all(self) -> list[Server]:
        return list(self.servers.values())

    async def send(self, request: Request | None = None) -> Outcome:
        return await self.pool.send(request or chat("hi"))

    def sent(self) -> list[int]:
        return [len(server.seen) for server in self.all]


def chat(prompt: str, **fields: Any) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], **fields}
    return Request(CHAT, orjson.dumps(body), "r")


def long(name: object) -> Request:
    return chat(f"document {name} " + "x" * 400)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def held(pool: Pool, requests: list[Request]) -> list[asyncio.Task[Outcome]]:
    """The requests, in flight until `hold` of their server is set."""
    for server in pool.all:
        server.hold = asyncio.Event()
    tasks = []
    for request in requests:
        tasks.append(asyncio.create_task(pool.send(request)))
        await asyncio.sleep(0)
    return tasks


async def released(pool: Pool, tasks: list[asyncio.Task[Outcome]]) -> list[Outcome]:
    for server in pool.all:
        assert server.hold is not None
        server.hold.set()
    return list(await asyncio.gather(*tasks))


class TestChoice:
    def test_requests_without_a_prefix_go_to_the_server_with_the_fewest_in_flight(self) -> None:
        async def main() -> None:
            pool = Pool(3)
            tasks = await held(pool, [chat("short")] * 9)
            assert pool.sent() == [3, 3, 3]
            await released(pool, tasks)

        run(main())

    def test_one_after_the_other_they_take_turns(self) -> None:
        async def main() -> None:
            pool = Pool(3)
            for _ in range(9):
                await pool.send()
            assert pool.sent() == [3, 3, 3]

        run(main())

    def test_lines_of_one_prefix_go_to_one_server(self) -> None:
        async def main() -> None:
            pool = Pool(3)
            for name in range(60):
                for _ in range(4):
                    await pool.send(long(name))
            servers_of: dict[bytes, set[int]] = {}
            for number, server in enumerate(pool.all):
                for request in server.seen:
                    servers_of.setdefault(request.body, set()).add(number)
            assert {len(servers) for servers in servers_of.values()} == {1}
            # And the prefixes are spread.
            assert min(pool.sent()) > 40

        run(main())

    def test_the_server_of_a_prefix_does_not_depend_on_the_order_of_the_addresses(self) -> None:
        async def main() -> None:
            one, other = Pool(3), Pool(3)
            other.pool = Replicas("m", dict(reversed(list(other.servers.items()))), other.clock)
            for name in range(30):
                await one.send(long(name))
                await other.send(long(name))
            assert one.sent() == other.sent()

        run(main())

    def test_a_prefix_that_all_lines_have_takes_no_server_above_its_share(self) -> None:
        async def main() -> None:
            pool = Pool(2)
            tasks = await held(pool, [long("same")] * 40)
            assert max(pool.sent()) <= 26
            assert min(pool.sent()) >= 14
            await released(pool, tasks)

        run(main())

    @pytest.mark.parametrize(
        "request_",
        [
            Request(RERANK, orjson.dumps({"query": "q" * 500, "documents": ["d"]}), "r"),
            chat("short"),
        ],
    )
    def test_no_prefix_to_share(self, request_: Request) -> None:
        assert replicas._key(request_) is None

    def test_tools_come_before_the_messages(self) -> None:
        tools = [{"type": "function", "function": {"name": "f", "description": "d" * 300}}]
        assert replicas._key(chat("one", tools=tools)) == replicas._key(chat("two", tools=tools))
        assert replicas._key(long("one")) != replicas._key(long("two"))


class TestAServerThatFails:
    def test_without_a_connection_another_one_gets_the_request_at_once(self) -> None:
        async def main() -> None:
            pool = Pool(2)
            pool.all[0].outcome = DOWN
            for _ in range(10):
                assert await pool.send() == ANSWER
            # It was asked once, and is away since.
            assert pool.sent() == [1, 10]

        run(main())

    @pytest.mark.parametrize("outcome", [BROKEN, DOWN])
    def test_that_dies_with_requests_in_flight_costs_none_of_them(self, outcome: Outcome) -> None:
        async def main() -> None:
            pool = Pool(2)
            tasks = await held(pool, [chat("short")] * 20)
            pool.all[0].outcome = outcome
            assert await released(pool, tasks) == [ANSWER] * 20
            assert pool.sent() == [10, 20]

        run(main())

    def test_a_line_that_breaks_each_server_is_sent_to_two_of_them(self) -> None:
        async def main() -> None:
            pool = Pool(3)
            for server in pool.all:
                server.outcome = BROKEN
            outcome = await pool.send()
            assert isinstance(outcome, Retryable)
            assert replace(outcome, server=1) == BROKEN
            assert outcome.server in (2, 3)
            assert sorted(pool.sent()) == [0, 1, 1]

        run(main())

    def test_that_comes_back_is_tried_by_one_request_after_a_pause(self) -> None:
        async def main() -> None:
            pool = Pool(2)
            pool.all[0].outcome = DOWN
            await pool.send()
            pool.clock.now += FIRST_PAUSE
            pool.all[0].outcome = ANSWER
            tasks = await held(pool, [chat("short")] * 4)
            assert pool.sent() == [2, 4]
            assert await released(pool, tasks) == [ANSWER] * 4
            await pool.send()
            await pool.send()
            assert pool.sent()[0] > 2

        run(main())

    def test_a_trial_that_fails_costs_its_line_nothing_and_doubles_the_pause(self) -> None:
        async def main() -> None:
            pool = Pool(2)
            pool.all[0].outcome = DOWN
            await pool.send()
            tried = []
            pool.all[0].outcome = SICK
            for _ in range(40):
                pool.clock.now += FIRST_PAUSE
                before = pool.sent()[0]
                assert await pool.send() == ANSWER
                if pool.sent()[0] > before:
                    tried.append(pool.clock.now - 100)
            assert tried == [1, 3, 7, 15, 31]

        run(main())

    def test_that_answers_nothing_but_errors_is_away_after_three(self) -> None:
        async def main() -> None:
            pool = Pool(2)
            pool.all[0].outcome = SICK
            outcomes = Counter([type(await pool.send()) for _ in range(20)])
            assert outcomes == {Retryable: 3, Answered: 17}

        run(main())

    def test_errors_between_answers_are_the_lines_own(self) -> None:
        async def main() -> None:
            pool = Pool(2)
            for _ in range(10):
                for server in pool.all:
                    server.outcome = SICK
                assert {await pool.send(), await pool.send()} == {SICK, replace(SICK, server=2)}
                for server in pool.all:
                    server.outcome = Refused(400, b"{}")
                await pool.send()
                await pool.send()
            assert pool.sent() == [20, 20]

        run(main())

    def test_that_does_not_answer_in_time_is_away_if_it_answers_nothing(self) -> None:
        async def main() -> None:
            pool = Pool(2)
            pool.all[0].outcome = LATE
            assert await pool.send() == LATE
            assert await pool.send() == ANSWER
            assert await pool.send() == ANSWER
            assert pool.sent() == [1, 2]

        run(main())

    def test_overload_beside_others_is_no_failure(self) -> None:
        async def main() -> None:
            pool = Pool(2)
            for server in pool.all:
                server.outcome = BUSY
            tasks = await held(pool, [chat("short")] * 8)
            outcomes = await released(pool, tasks)
            # The last of each server was alone, and asked the other one.
            assert set(outcomes) == {BUSY, replace(BUSY, server=2)}
            assert sum(pool.sent()) <= 10

        run(main())

    def test_overload_of_an_idle_server_means_that_it_is_not_ready(self) -> None:
        async def main() -> None:
            pool = Pool(2)
            pool.all[0].outcome = BUSY
            assert [await pool.send() for _ in range(6)] == [ANSWER] * 6
            assert pool.sent() == [1, 6]

        run(main())

    def test_with_all_away_each_request_is_sent_as_to_a_single_server(self) -> None:
        async def main() -> None:
            pool = Pool(2)
            for server in pool.all:
                server.outcome = DOWN
            assert [await pool.send() for _ in range(2)] == [replace(DOWN, server=2)] * 2
            assert pool.sent() == [2, 2]
            # The circuit breaker decides when the next request comes; it is answered at once.
            pool.all[1].outcome = ANSWER
            assert await pool.send() == ANSWER

        run(main())

    def test_it_is_logged_once_and_when_it_is_back(self) -> None:
        async def main() -> None:
            pool = Pool(2)
            pool.all[0].outcome = DOWN
            for _ in range(5):
                await pool.send()
                pool.clock.now += 1
            pool.all[0].outcome = ANSWER
            for _ in range(9):
                pool.clock.now += 1
                await pool.send()

        with capture_logs() as logged:
            run(main())
        assert [entry["event"] for entry in logged] == ["replica.away", "replica.here"]
        assert logged[0]["server"] == "http://a:8000/v1"

    def test_a_cancelled_trial_leaves_the_server_to_the_next_one(self) -> None:
        async def main() -> None:
            pool = Pool(2)
            pool.all[0].outcome = DOWN
            await pool.send()
            pool.clock.now += FIRST_PAUSE
            (task,) = await held(pool, [chat("short")])
            task.cancel()
            await asyncio.wait([task])
            pool.all[0].hold = pool.all[1].hold = None
            pool.clock.now += FIRST_PAUSE
            await pool.send()
            assert pool.sent() == [3, 2]

        run(main())


def test_closing_closes_every_server() -> None:
    async def main() -> None:
        pool = Pool(3)
        await pool.pool.close()
        assert all(server.is_closed for server in pool.all)

    run(main())

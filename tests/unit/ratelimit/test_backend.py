"""A backend's rate limits on virtual time: exact over all processes, and fair within each."""

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.unit.virtual_time import Server, run
from xalen_batch.catalog import BackendConfig
from xalen_batch.endpoints.names import CHAT, RERANK
from xalen_batch.ratelimit.backend import RETRY, TYPICAL_ANSWER, Rates, estimate
from xalen_batch.ratelimit.buckets import HOLD, RateLimit

TOLERANCE = 1e-3


@dataclass
class Sent:
    """The granted requests: their times and tokens."""

    at: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, tokens: int) -> None:
        self.at.append(asyncio.get_running_loop().time())
        self.tokens.append(tokens)

    def between(self, start: float, end: float) -> int:
        return bisect_left(self.at, end) - bisect_left(self.at, start)

    def most_in_a_minute(self) -> int:
        return max(self.between(at, at + 60) for at in self.at)


@asynccontextmanager
async def processes(
    count: int = 1, *, requests: int | None = None, tokens: int | None = None
) -> AsyncIterator[list[Rates]]:
    made = [
        Rates(
            "model", requests_per_minute=requests, tokens_per_minute=tokens, workers=lambda: count
        )
        for _ in range(count)
    ]
    try:
        yield made
    finally:
        for rates in made:
            await rates.close()


async def send(rates: Rates, sent: Sent, tokens: int = 1) -> None:
    await rates.admit(tokens)
    sent.add(tokens)


async def send_for(
    seconds: float,
    rates: Rates,
    sent: Sent,
    *,
    tokens: int = 1,
    in_flight: int = 20,
    used: int | None = None,
) -> None:
    """Keep a number of requests waiting or in flight; each is answered after half a second."""

    async def one() -> None:
        while True:
            await send(rates, sent, tokens)
            await asyncio.sleep(0.5)
            if used is not None:
                rates.settle(tokens, used)

    senders = [asyncio.create_task(one()) for _ in range(in_flight)]
    await asyncio.sleep(seconds)
    for sender in senders:
        sender.cancel()
    await asyncio.gather(*senders, return_exceptions=True)


def now() -> float:
    return asyncio.get_running_loop().time()


arrivals = st.lists(
    st.tuples(st.floats(0, 8), st.integers(1, 5_000), st.booleans(), st.integers(1, 20)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=20, deadline=None)
@given(st.lists(arrivals, min_size=1, max_size=4), st.integers(1, 6_000), st.integers(60, 600_000))
def test_no_window_holds_more_than_the_bucket_and_what_filled_it_meanwhile(
    plans: list[list[tuple[float, int, bool, int]]], per_minute: int, tokens_per_minute: int
) -> None:
    sent = Sent()

    async def burst(rates: Rates, at: float, tokens: int, is_impatient: bool, count: int) -> None:
        await asyncio.sleep(at)
        waiting = [asyncio.create_task(send(rates, sent, tokens)) for _ in range(count)]
        if is_impatient:
            await asyncio.sleep(at % 0.3)
            for task in waiting[::2]:
                task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def main() -> None:
        async with processes(
            len(plans), requests=per_minute, tokens=tokens_per_minute
        ) as all_rates:
            steps = [
                burst(rates, *step)
                for rates, plan in zip(all_rates, plans, strict=True)
                for step in plan
            ]
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*steps), 10)

    run(main)
    requests, tokens = RateLimit(per_minute), RateLimit(tokens_per_minute)
    until = [0, *accumulate(sent.tokens)]
    for first, start in enumerate(sent.at):
        for last in range(first, len(sent.at)):
            window = sent.at[last] - start + HOLD
            assert last - first <= requests.burst + requests.rate * window + TOLERANCE
            assert (
                until[last + 1] - until[first]
                <= tokens.burst + tokens.rate * window + max(sent.tokens) + TOLERANCE
            )


@pytest.mark.parametrize("per_minute", [6, 60, 600, 6_000])
def test_processes_together_use_the_limit_and_no_minute_passes_it(per_minute: int) -> None:
    async def main() -> None:
        sent = Sent()
        async with processes(3, requests=per_minute) as all_rates:
            await asyncio.gather(*(send_for(125, rates, sent, in_flight=40) for rates in all_rates))
        assert 0.95 * per_minute <= sent.between(60, 120) <= sent.most_in_a_minute() <= per_minute

    run(main)


def test_a_minutes_budget_is_not_spent_in_its_first_second() -> None:
    async def main() -> None:
        sent = Sent()
        async with processes(2, requests=600) as all_rates:
            await send(all_rates[0], sent)
            await asyncio.sleep(30)
            await asyncio.gather(*(send_for(1, rates, sent, in_flight=500) for rates in all_rates))
        assert 18 <= sent.between(30, 31) <= 21

    run(main)


def test_a_request_larger_than_the_bucket_passes_and_is_paid_off_before_the_next() -> None:
    async def main() -> None:
        sent = Sent()
        async with processes(2, tokens=6_000) as (one, other):
            await send(one, sent, 1_000)
            assert now() < 1
            await send(other, sent, 10)
            assert 10 < now() < 12
            # It waits no longer than a small one would.
            await asyncio.wait_for(send(one, sent, 20_000), 2)

    run(main)


def test_requests_pass_in_the_order_in_which_they_came() -> None:
    async def main() -> None:
        order: list[int] = []

        async def one(number: int, rates: Rates) -> None:
            await rates.admit(1_000 if number % 7 == 0 else 10)
            order.append(number)

        async with processes(requests=600, tokens=60_000) as (rates,):
            await asyncio.gather(*(one(number, rates) for number in range(50)))
        assert order == list(range(50))

    run(main)


def test_who_stops_waiting_holds_nobody_up_and_takes_no_grant_along() -> None:
    async def main() -> None:
        sent = Sent()
        async with processes(requests=60) as (rates,):
            await send(rates, sent)
            granted, waiting, last = (asyncio.create_task(send(rates, sent)) for _ in range(3))
            await asyncio.sleep(0.1)
            # One request is granted and cancelled at the same moment, one is cancelled as it waits.
            rates._requests = 1
            rates._let_pass()
            granted.cancel()
            waiting.cancel()
            await last
            assert granted.cancelled()
            assert waiting.cancelled()
            assert now() == pytest.approx(0.1, abs=0.05)
            assert not rates._waiting
            assert not rates._waiting_tokens

    run(main)


def test_tokens_that_were_not_used_can_be_used_by_others() -> None:
    async def main() -> None:
        plain, corrected = Sent(), Sent()
        async with processes(2, tokens=60_000) as all_rates:
            await asyncio.gather(*(send_for(60, rates, plain, tokens=400) for rates in all_rates))
            await asyncio.sleep(5)
            await asyncio.gather(
                *(send_for(60, rates, corrected, tokens=400, used=100) for rates in all_rates)
            )
        assert 140 <= len(plain.at) <= 152
        # Four times the requests, except for corrections that have not arrived yet.
        assert 0.9 * 590 <= len(corrected.at) <= 610

    run(main)


def test_a_refused_request_gives_all_its_tokens_back_and_a_longer_answer_is_paid_off() -> None:
    async def main() -> None:
        async with processes(2, tokens=60_000) as (one, other):
            await one.admit(30_000)
            one.settle(30_000, None)
            await other.admit(100)
            assert now() < 2
            one.settle(100, 20_000)
            await asyncio.sleep(2 * HOLD)
            await other.admit(100)
            assert 20 < now() < 24

    run(main)


def test_few_calls_are_made_while_the_limit_is_far() -> None:
    async def main() -> None:
        sent = Sent()
        async with processes(requests=6_000_000, tokens=6_000_000_000) as (rates,):
            await send_for(10, rates, sent, tokens=100, in_flight=500)
            assert len(sent.at) >= 0.9 * 10_000
            assert server.calls <= 20 * 10

    server = Server()
    run(main, server)


def test_no_limit_asks_nobody() -> None:
    async def main() -> None:
        server.is_away = True
        async with processes() as (rates,):
            for _ in range(1_000):
                await rates.admit(1_000_000)
                rates.settle(1_000_000, None)
            assert rates.wait == 0
            assert now() == 0

    server = Server()
    run(main, server)


def test_the_wait_of_a_new_request_is_told() -> None:
    async def main() -> None:
        async with processes(requests=60) as (rates,):
            assert rates.wait == 0
            waiting = [asyncio.create_task(rates.admit(1)) for _ in range(11)]
            await asyncio.sleep(0.1)
            assert 9 < rates.wait < 13
            await asyncio.gather(*waiting)
            assert 0 < rates.wait < 1.1
            await asyncio.sleep(2)
            assert rates.wait == 0

    run(main)


def test_without_redis_processes_exceed_the_limit_by_three_seconds_worth_at_most() -> None:
    server = Server()

    async def outage() -> None:
        await asyncio.sleep(60)
        server.is_away = True
        await asyncio.sleep(60)
        server.is_away = False

    async def main() -> None:
        sent = Sent()
        async with processes(3, requests=600) as all_rates:
            await asyncio.gather(
                outage(), *(send_for(240, rates, sent, in_flight=40) for rates in all_rates)
            )
        assert 0.9 * 600 <= sent.between(60, 120) <= 600
        assert 0.95 * 600 <= sent.between(180, 240) <= 600
        assert sent.most_in_a_minute() <= 600 * (1 + 3 / 60)

    run(main, server)


def test_a_redis_that_lost_everything_allows_no_second_burst() -> None:
    server = Server()

    async def loss() -> None:
        for _ in range(10):
            await asyncio.sleep(6)
            server.lose()

    async def main() -> None:
        sent = Sent()
        async with processes(2, requests=600) as all_rates:
            await asyncio.gather(
                loss(), *(send_for(61, rates, sent, in_flight=40) for rates in all_rates)
            )
        # One more request for each time that Redis lost its data.
        assert sent.most_in_a_minute() <= 600 + 10

    run(main, server)


def test_a_redis_that_is_away_from_the_start_is_found_when_it_comes() -> None:
    server = Server()
    server.is_away = True

    async def main() -> None:
        sent = Sent()
        async with processes(4, requests=600) as (rates, *_):
            await send_for(30, rates, sent)
            assert 30 * 10 / 4 * 0.9 <= len(sent.at) <= 30 * 10 / 4
            server.is_away = False
            await send_for(30, rates, sent)
            assert sent.between(30 + RETRY, 60) >= (30 - RETRY) * 10 * 0.9

    run(main, server)


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b'{"messages": [], "max_tokens": 100}', 100),
        (b'{"messages": [], "max_completion_tokens": 7, "max_tokens": 100, "n": 3}', 21),
        (b'{"messages": []}', TYPICAL_ANSWER),
        (b'{"messages": [], "max_tokens": 1e2, "n": 2.0}', 200),
        (b'{"messages": [], "n": 2}', 2 * TYPICAL_ANSWER),
        (b'{"max_tokens": "many"}', TYPICAL_ANSWER),
        (b"\xff", TYPICAL_ANSWER),
    ],
)
def test_a_request_is_expected_to_use_what_it_reads_and_the_longest_answer(
    body: bytes, answer: int
) -> None:
    assert estimate(body, CHAT) == len(body) // 4 + 1 + answer
    assert estimate(body, RERANK) == len(body) // 4 + 1


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
def test_the_catalog_has_no_limit_unless_it_is_given_and_none_of_nothing(name: str) -> None:
    assert getattr(BackendConfig(), name) is None
    with pytest.raises(ValidationError):
        BackendConfig(**{name: 0})

"""The script in Redis: the same arithmetic as a process's own bucket, on the server's clock."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from unittest import mock

import fakeredis
import pytest
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st

from xalen_batch.ratelimit import buckets
from xalen_batch.ratelimit.buckets import Ask, LocalBucket, RateLimit, RateLimits, SharedBucket

# Early, so that a float has room for the microseconds' fractions.
START = 5_000.0


def run(main: Callable[[time_machine.Traveller], Coroutine[Any, Any, None]]) -> None:
    """Run with an empty Redis whose clock stands still until it is moved."""
    server = fakeredis.FakeServer()

    def connect() -> fakeredis.FakeAsyncRedis:
        return fakeredis.FakeAsyncRedis(server=server)

    with (
        time_machine.travel(START, tick=False) as clock,
        mock.patch.object(buckets, "connect", connect),
    ):
        asyncio.run(main(clock))


limits = st.builds(
    RateLimits,
    st.none() | st.builds(RateLimit, st.integers(1, 100_000)),
    st.none() | st.builds(RateLimit, st.integers(1, 10_000_000)),
)
asks = st.builds(
    Ask,
    st.integers(0, 500),
    st.integers(0, 50_000),
    st.integers(0, 50_000),
    st.integers(-100, 100),
    st.integers(-9_000, 9_000),
)


@settings(max_examples=25, deadline=None)
@given(limits, st.lists(st.tuples(st.integers(0, 5_000), asks), max_size=8))
def test_the_script_grants_what_a_bucket_of_ones_own_would(
    limits: RateLimits, steps: list[tuple[int, Ask]]
) -> None:
    async def main(clock: time_machine.Traveller) -> None:
        shared, own = SharedBucket("model", limits), LocalBucket(limits, 0)
        own.take(Ask(spent_requests=-1), 1, 0)
        await shared.take(Ask())
        at = 0.0
        for milliseconds, ask in steps:
            at += milliseconds / 1000
            clock.move_to(START + at)
            granted, expected = await shared.take(ask), own.take(ask, 1, at)
            assert granted[:2] == expected[:2]
            assert granted.wait == pytest.approx(expected.wait, abs=1e-5)

    run(main)


def test_both_limits_are_granted_or_neither() -> None:
    async def main(clock: time_machine.Traveller) -> None:
        bucket = SharedBucket("model", RateLimits(RateLimit(600), RateLimit(6_000)))
        assert (await bucket.take(Ask(1, 300, 300)))[:2] == (1, 300)
        clock.shift(1)
        refused = await bucket.take(Ask(1, 10, 10))
        assert refused[:2] == (0, 0)
        assert refused.wait == pytest.approx(200 / RateLimit(6_000).rate, abs=0.1)
        clock.shift(refused.wait)
        assert (await bucket.take(Ask(1, 10, 10)))[:2] == (1, 10)

    run(main)


def test_models_have_buckets_of_their_own() -> None:
    async def main(clock: time_machine.Traveller) -> None:
        limits = RateLimits(RateLimit(1), None)
        assert (await SharedBucket("one", limits).take(Ask(1))).requests == 1
        assert (await SharedBucket("other", limits).take(Ask(1))).requests == 1
        assert (await SharedBucket("one", limits).take(Ask(1))).requests == 0

    run(main)


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    async def main(clock: time_machine.Traveller) -> None:
        bucket = SharedBucket("model", RateLimits(RateLimit(60), None))
        assert (await bucket.take(Ask(1))).requests == 1
        clock.shift(-3_600)
        assert (await bucket.take(Ask(1))).requests == 0
        clock.shift(1.1)
        assert (await bucket.take(Ask(1))).requests == 1

    run(main)


def test_a_debt_is_not_forgotten() -> None:
    async def main(clock: time_machine.Traveller) -> None:
        bucket = SharedBucket("model", RateLimits(None, RateLimit(60)))
        await bucket.take(Ask(1, 3_600, 3_600))
        clock.shift(1_800)
        assert (await bucket.take(Ask(1, 1, 1))).requests == 0

    run(main)

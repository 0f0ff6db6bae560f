"""Rate limits of an account: the Redis script against a local bucket, and promises kept."""

import heapq
import time
from unittest import mock

import fakeredis
import pytest
import redis
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st

from xalen_batch import ids
from xalen_batch.accounts.accounts import Owner
from xalen_batch.ratelimit import account
from xalen_batch.ratelimit.account import (
    LONGEST_WAIT,
    RETRY,
    SMALLEST_BUCKET,
    UNKNOWN_PROCESSES,
    AccountBucket,
    AccountBuckets,
    Draw,
)

# Early, so that a float has room for the microseconds' fractions.
START = 5_000.0


def buckets_of(server: fakeredis.FakeServer) -> AccountBuckets:
    with mock.patch.object(
        redis.Redis, "from_url", return_value=fakeredis.FakeRedis(server=server)
    ):
        return AccountBuckets("redis://here")


def bucket_of(limit: int) -> AccountBucket:
    size = max(SMALLEST_BUCKET, limit)
    return AccountBucket(limit, size, 0, size)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 1_000),
    st.lists(st.tuples(st.sampled_from([0, 1, 3, 58, 256]), st.integers(1, 40)), max_size=6),
)
def test_the_script_draws_what_a_local_bucket_would(
    limit: int, steps: list[tuple[int, int]]
) -> None:
    with time_machine.travel(START, tick=False) as clock:
        shared, own, at = buckets_of(fakeredis.FakeServer()), bucket_of(limit), 0.0
        for ticks, times in steps:
            # A 64th of a second is exact in a float and in Redis's microseconds. So both buckets
            # hold the same amount, and none is refused for a rounding error.
            at += ticks / 64
            clock.move_to(START + at)
            for _ in range(times):
                drawn, expected = shared.draw("a", limit), own.draw(limit, at)
                assert drawn[:2] == expected[:2]
                assert drawn[2:] == pytest.approx(expected[2:], abs=2e-6)


@pytest.mark.parametrize(("limit", "burst"), [(20, 400), (1, 20), (200, 1_000)])
def test_a_burst_that_comes_back_when_it_is_told_is_served_at_the_rate_without_a_second_refusal(
    limit: int, burst: int
) -> None:
    bucket = bucket_of(limit)
    waiting = [(0.0, 0, number) for number in range(burst)]
    refused, last = [0] * burst, 0.0
    while waiting:
        at, _, number = heapq.heappop(waiting)
        wait = bucket.draw(limit, at).wait
        last = at
        if wait:
            refused[number] += 1
            # Clients that follow the header never come too early.
            heapq.heappush(waiting, (at + wait + 0.0005, 1, number))
    assert max(refused) == 1
    assert last == pytest.approx((burst - max(SMALLEST_BUCKET, limit)) / limit, rel=0.05, abs=0.1)


def test_nobody_is_sent_away_for_longer_than_a_client_waits() -> None:
    bucket = bucket_of(1)
    assert max(bucket.draw(1, 0).wait for _ in range(100)) == LONGEST_WAIT


def test_accounts_and_their_processes_are_told_apart() -> None:
    server = fakeredis.FakeServer()
    one, other = buckets_of(server), buckets_of(server)
    draws = [one.draw("a", 1), other.draw("a", 1), one.draw("a", 1), other.draw("b", 1)]
    assert [draw.wait > 0 for draw in draws] == [False, False, True, False]
    one.draw("a", 1)
    assert (one._processes, other._processes) == (2, 2)


class TestWithoutRedis:
    def test_a_process_goes_on_at_its_share_and_asks_again_after_a_second(self) -> None:
        server = fakeredis.FakeServer()
        one, other = buckets_of(server), buckets_of(server)
        for each in (one, other, one):
            each.draw("a", 100)
        server.connected = False
        granted = [one.draw("a", 100).wait == 0 for _ in range(60)]
        # Half of the limit, and the tokens refilled meanwhile.
        assert 50 <= sum(granted) < 60
        server.connected = True
        assert one._retry_at > 0
        one._retry_at = time.monotonic()
        assert one.draw("a", 100).remaining > 50
        assert (one._retry_at, one._local) == (0.0, {})

    def test_one_that_never_reached_it_takes_a_part(self) -> None:
        alone = AccountBuckets(None)
        limit = 40 * UNKNOWN_PROCESSES
        assert 40 <= sum(alone.draw("a", limit).wait == 0 for _ in range(60)) < 60

    def test_of_many_requests_one_a_second_waits_for_it(self) -> None:
        server = fakeredis.FakeServer()
        one = buckets_of(server)
        server.connected = False
        one.draw("a", 10)
        with mock.patch.object(one, "_draw_shared", wraps=one._draw_shared) as asked:
            for _ in range(20):
                one.draw("a", 10)
            assert asked.call_count == 0
            one._retry_at = time.monotonic() - RETRY
            for _ in range(20):
                one.draw("a", 10)
            assert asked.call_count == 1


def test_what_is_had_by_the_minute_comes_back_by_the_minute() -> None:
    with time_machine.travel(START, tick=False) as clock:
        shared = buckets_of(fakeredis.FakeServer())
        assert [shared.draw("a", 5, 60).wait for _ in range(6)] == [
            0,
            0,
            0,
            0,
            0,
            pytest.approx(12),
        ]
        clock.move_to(START + 13)
        assert shared.draw("a", 5, 60).wait == 0


def test_a_process_forgets_buckets_before_they_fill_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(account, "MOST_LOCAL", 10)
    alone = AccountBuckets(None)
    for number in range(50):
        assert alone.draw(str(number), 1).wait == 0
    assert list(alone._local) == [str(number) for number in range(40, 50)]


def test_settings_without_redis_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "_buckets_of", lambda url: AccountBuckets(None))
    assert account.draw("a", 10).limit == 10


@pytest.mark.parametrize("rate", [1, 50, 150, 400])
def test_live_calls_take_tokens_of_blocks_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, rate: int
) -> None:
    limit, seconds, clock, draws = 200, 10, 0.0, 0
    bucket = AccountBucket(limit, limit, 0, limit)

    def draw(name: str, limit: int, seconds: float = 1.0, cost: int = 1) -> Draw:
        nonlocal draws
        draws += 1
        return bucket.draw(limit, clock, cost)

    monkeypatch.setattr(account, "draw", draw)
    monkeypatch.setattr(account, "_blocks", {})
    owner = Owner(ids.new(), livemode=True)
    granted = 0
    for number in range(rate * seconds):
        clock = number / rate
        granted += account._draw_ahead(owner, limit, clock).wait == 0
    assert granted <= limit * (seconds + 1)
    assert granted >= 0.95 * min(rate, limit) * seconds
    # Calls within the limit seldom ask Redis; a refused call asks it each time.
    assert draws <= rate * seconds * (1 if rate in (1, 400) else 0.3)
    assert bucket.level >= 0

"""Token buckets with overdraft, for a backend's requests and tokens per minute.

All processes share a bucket in Redis; a process has a local one while Redis is unavailable.

A bucket holds the amount of one second and refills at a constant rate. It grants a request of any
size unless it is overdrawn, so a large request waits no longer than a small one. An overdraft is
paid off before the next grant (docs/decisions/0013).
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import NamedTuple, cast

import redis
import redis.asyncio
from redis.backoff import NoBackoff

from xalen_batch import broker

# Seconds for which a grant is valid: it is used or returned before.
HOLD = 0.2
# Seconds for Redis to answer, and to accept a connection; without an answer it is unavailable.
REDIS_TIMEOUT = 0.25
# Seconds after which Redis drops an unused bucket, once its overdraft is paid off.
KEPT_FOR = 60
# The errors of an unavailable Redis; `TimeoutError` is an `OSError`.
UNAVAILABLE = (redis.RedisError, OSError)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A limit per minute, as the size (`burst`) and the rate of a bucket.

    Grants within 60 seconds and the HOLD before them add up to at most `per_minute` and the
    overdraft of the last one.
    """

    per_minute: int

    @property
    def burst(self) -> float:
        return self.per_minute / 60

    @property
    def rate(self) -> float:
        """Units per second."""
        return (self.per_minute - self.burst) / (60 + HOLD)


class RateLimits(NamedTuple):
    """The limits of one backend; None: not limited."""

    requests: RateLimit | None
    tokens: RateLimit | None


class Ask(NamedTuple):
    """A request for grants.

    `first`: tokens of the next request, which are granted in full or not at all. `spent_requests`,
    `spent_tokens`: corrections of earlier grants; negative amounts are returned.
    """

    requests: int = 0
    tokens: int = 0
    first: int = 0
    spent_requests: int = 0
    spent_tokens: int = 0


class Grant(NamedTuple):
    """`wait`: seconds until more may be granted."""

    requests: int
    tokens: int
    wait: float


# KEYS: the bucket. ARGV, for requests and then for tokens: rate (0: no limit), burst, amount asked,
# least amount, amount spent. The clock is that of Redis. If it is set back, no time has passed.
TAKE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local kept = redis.call('HMGET', KEYS[1], 'at', 'requests', 'tokens')
local passed = math.max(0, now - (tonumber(kept[1]) or now))
local levels, got, wait, is_open = {}, {0, 0}, 0, true
for i = 1, 2 do
  local rate, burst, spent = tonumber(ARGV[5 * i - 4]), tonumber(ARGV[5 * i - 3]), tonumber(ARGV[5 * i])
  levels[i] = rate > 0 and math.min(burst, (tonumber(kept[i + 1]) or 0) + rate * passed - spent) or 0
  is_open = is_open and levels[i] >= 0
end
for i = 1, 2 do
  local rate, asked, least = tonumber(ARGV[5 * i - 4]), tonumber(ARGV[5 * i - 2]), tonumber(ARGV[5 * i - 1])
  if is_open then
    got[i] = rate > 0 and math.max(least, math.min(asked, math.floor(levels[i]))) or asked
  end
  if rate > 0 then
    levels[i] = levels[i] - got[i]
    wait = math.max(wait, -levels[i] / rate)
  end
end
local exact = '%.17g'
redis.call('HSET', KEYS[1], 'at', exact:format(now), 'requests', exact:format(levels[1]), 'tokens', exact:format(levels[2]))
redis.call('EXPIRE', KEYS[1], math.ceil(wait) + tonumber(ARGV[11]))
return {got[1], got[2], math.ceil(wait * 1000000)}
"""


class SharedBucket:
    """The bucket in Redis that all processes share; event loop thread only.

    A new bucket is empty, so a Redis that lost its data allows no second burst.
    """

    def __init__(self, name: str, limits: RateLimits) -> None:
        self._client = connect()
        self._script = self._client.register_script(TAKE)
        self._key = f"xalen:rates:{name}"
        self._shapes = [(limit.rate, limit.burst) if limit else (0, 0) for limit in limits]

    async def take(self, ask: Ask) -> Grant:
        """Take grants. Raises UNAVAILABLE; Redis may have granted all the same."""
        requests, tokens = self._shapes
        least = min(ask.requests, 1)
        values = [
            *requests,
            ask.requests,
            least,
            ask.spent_requests,
            *tokens,
            ask.tokens,
            ask.first,
            ask.spent_tokens,
            KEPT_FOR,
        ]
        async with asyncio.timeout(2 * REDIS_TIMEOUT):
            got = await cast(Awaitable[list[int]], self._script([self._key], values))
        return Grant(got[0], got[1], got[2] / 1e6)

    async def close(self) -> None:
        await self._client.aclose()


def connect(*, silent_for: float | None = REDIS_TIMEOUT) -> redis.asyncio.Redis:
    """A client of the broker's Redis without retries, as a grant is not idempotent.

    `silent_for`: seconds for which Redis may send nothing; None: for ever.
    """
    return redis.asyncio.Redis.from_url(
        broker.url(),
        socket_timeout=silent_for,
        socket_connect_timeout=REDIS_TIMEOUT,
        retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
    )


class LocalBucket:
    """A local bucket with one process's share, by the arithmetic of TAKE; event loop thread only.

    It starts overdrawn by one request, since other processes may start theirs at the same time.
    """

    def __init__(self, limits: RateLimits, now: float) -> None:
        self._limits = limits
        self._levels = [-1.0, 0.0]
        self._at = now

    def take(self, ask: Ask, shares: int, now: float) -> Grant:
        """Take grants from one of `shares` equal shares. `now`: seconds of a monotonic clock."""
        passed = now - self._at
        self._at = now
        spent = (ask.spent_requests, ask.spent_tokens)
        for i, limit in enumerate(self._limits):
            if limit:
                filled = self._levels[i] + limit.rate / shares * passed - spent[i]
                self._levels[i] = min(limit.burst / shares, filled)
            else:
                self._levels[i] = 0.0
        got = [0, 0]
        if min(self._levels) >= 0:
            got = [ask.requests, ask.tokens]
            least = (min(ask.requests, 1), ask.first)
            for i, limit in enumerate(self._limits):
                if limit:
                    got[i] = max(least[i], min(got[i], int(self._levels[i])))
        wait = 0.0
        for i, limit in enumerate(self._limits):
            if limit:
                self._levels[i] -= got[i]
                wait = max(wait, -self._levels[i] / limit.rate * shares)
        return Grant(got[0], got[1], wait)

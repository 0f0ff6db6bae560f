"""Token buckets for a backend's limits per minute: the one in Redis that all processes share, and
one process's own while Redis is away.

A bucket holds at most a second's worth and fills steadily. Whoever asks is served while the bucket
is not in debt, whatever the size of the request, so that a large one waits no longer than a small
one; what it took too much is paid off before the next (docs/decisions/0013).
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import NamedTuple, cast

import redis
import redis.asyncio
from redis.backoff import NoBackoff

from xalen_batch import broker

# Seconds within which a grant is used or given back.
HOLD = 0.2
# Seconds that Redis has for an answer, and to take a connection; beyond that it is away.
PATIENCE = 0.25
# Seconds that the shared bucket outlives its last use, beyond its debt.
KEPT = 60
# What is raised while Redis is away.
UNAVAILABLE = (redis.RedisError, OSError)


@dataclass(frozen=True, slots=True)
class Limit:
    """So many per minute, as the size and the rate of a bucket.

    Whatever is granted within 60 seconds and the HOLD before them is at most `per_minute`, and
    what the last grant of them took beyond the first of its units.
    """

    per_minute: int

    @property
    def burst(self) -> float:
        return self.per_minute / 60

    @property
    def rate(self) -> float:
        """Per second."""
        return (self.per_minute - self.burst) / (60 + HOLD)


class Limits(NamedTuple):
    """Of one backend; None: not limited."""

    requests: Limit | None
    tokens: Limit | None


class Ask(NamedTuple):
    """`first`: the tokens of the request that is next, which are granted in whole or not at all.

    `spent_requests`, `spent_tokens`: corrections of earlier grants, negative for what is given
    back.
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


# KEYS: the bucket. ARGV, for requests and then for tokens: rate (0: no limit), burst, asked, at
# least, spent.
# The clock is the server's. It may be set back, so its last value counts for no more than an
# interval.
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
    """The bucket of all processes, in Redis.

    A new one is empty, so a Redis that lost it allows no second burst.
    """

    def __init__(self, name: str, limits: Limits) -> None:
        self._client = connect()
        self._script = self._client.register_script(TAKE)
        self._key = f"xalen:rates:{name}"
        self._shapes = [(limit.rate, limit.burst) if limit else (0, 0) for limit in limits]

    async def take(self, ask: Ask) -> Grant:
        """Raises UNAVAILABLE where Redis does not answer in time; then it may have granted nevertheless."""
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
            KEPT,
        ]
        async with asyncio.timeout(2 * PATIENCE):
            got = await cast(Awaitable[list[int]], self._script([self._key], values))
        return Grant(got[0], got[1], got[2] / 1e6)

    async def close(self) -> None:
        await self._client.aclose()


def connect() -> redis.asyncio.Redis:
    """A client of the broker's Redis that gives up soon and never tries twice: a grant is not
    idempotent.
    """
    return redis.asyncio.Redis.from_url(
        broker.url(),
        socket_timeout=PATIENCE,
        socket_connect_timeout=PATIENCE,
        retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
    )


class OwnBucket:
    """One process's share, by the same arithmetic.

    It starts owing a request, since others may have begun as well.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._levels = [-1.0, 0.0]
        self._at = now

    def take(self, ask: Ask, shares: int, now: float) -> Grant:
        """One of so many equal shares. `now`: seconds of a clock that only goes forward."""
        passed, self._at = now - self._at, now
        spent = (ask.spent_requests, ask.spent_tokens)
        for i, limit in enumerate(self._limits):
            filled = self._levels[i] + limit.rate / shares * passed - spent[i] if limit else 0.0
            self._levels[i] = min(limit.burst / shares, filled) if limit else 0.0
        got = [0, 0]
        if min(self._levels) >= 0:
            asked, least = (ask.requests, ask.tokens), (min(ask.requests, 1), ask.first)
            got = [
                max(least[i], min(asked[i], int(self._levels[i]))) if limit else asked[i]
                for i, limit in enumerate(self._limits)
            ]
        wait = 0.0
        for i, limit in enumerate(self._limits):
            if limit:
                self._levels[i] -= got[i]
                wait = max(wait, -self._levels[i] / limit.rate * shares)
        return Grant(got[0], got[1], wait)

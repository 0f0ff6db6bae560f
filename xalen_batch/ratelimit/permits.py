"""The permits of one backend, `max_in_flight` of them, shared by live calls and batches.

A request in flight takes one.

API and worker processes note in Redis how many permits they hold, and for how many live calls wait.
Live calls come first: workers keep the permits that no live call wants, and give permits up as their
lines are answered. An entry that its process has not renewed for KEPT_FOR seconds does not count.
While Redis is unavailable, live calls use the reserve, and batches the rest.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import NamedTuple, cast

from xalen_batch.ratelimit.buckets import REDIS_TIMEOUT, UNAVAILABLE, connect

__all__ = ["KEPT_FOR", "UNAVAILABLE", "Held", "Share", "SharedPermits", "name_of", "reserve_of"]

# Seconds after which an entry that was not renewed is dropped.
KEPT_FOR = 5
# Without a reserve in the catalog, live calls use this share of the permits while Redis is away.
FALLBACK_SHARE = 1 / 8
# The names in Redis are those of the first version: processes of both share the permits while an
# installation is upgraded.
CHANNEL = "xalen:slots:wanted"


class Held(NamedTuple):
    """The permits of an API process. `possible`: those that it could have once batches give way."""

    held: int
    possible: int


class Share(NamedTuple):
    """The permits that a worker process may use; `is_bounded`: because of live calls."""

    permits: int
    is_bounded: bool


# KEYS: the entries of one backend, by process. ARGV: process, kind (live or batch), seconds for
# which an entry counts, all permits, reserve, and for live: permits wanted; for batch: permits in use,
# and the process's share without live calls. An entry is "time kind wanted held".
HOLD = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local me, kind, kept, all, reserve = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local wanted, live, batch, workers, before = 0, 0, 0, 1, 0
local entries = redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
  local at, of, wants, holds = entries[i + 1]:match('(%S+) (%S+) (%S+) (%S+)')
  if now - tonumber(at) > kept then
    redis.call('HDEL', KEYS[1], entries[i])
  elseif entries[i] ~= me then
    if of == 'live' then
      wanted, live = wanted + tonumber(wants), live + tonumber(holds)
    else
      batch, workers = batch + tonumber(holds), workers + 1
      if entries[i] < me then before = before + 1 end
    end
  end
end
local wants, holds, result
if kind == 'live' then
  wants = tonumber(ARGV[6])
  holds = math.max(0, math.min(wants, all - live - batch))
  result = {holds, math.max(0, all - live)}
else
  local used, share = tonumber(ARGV[6]), tonumber(ARGV[7])
  wants = 0
  local taken = math.max(reserve, wanted)
  if taken > 0 then
    local left = math.max(0, all - taken)
    local equal = math.floor(left / workers) + (before < left % workers and 1 or 0)
    share = math.max(1, math.min(share, equal, all - live - batch))
  end
  holds = math.max(used, share)
  result = {share, taken}
end
redis.call('HSET', KEYS[1], me, string.format('%.6f %s %d %d', now, kind, wants, holds))
redis.call('EXPIRE', KEYS[1], 10 * kept)
return result
"""


def name_of(model: str, *, livemode: bool) -> str:
    """The name of a backend's permits."""
    return f"{model}:{'live' if livemode else 'test'}"


def reserve_of(permits: int, reserve: int) -> int:
    """The permits of live calls while Redis is unavailable."""
    return min(permits, max(reserve, round(permits * FALLBACK_SHARE), 1))


class SharedPermits:
    """The permits of one backend as one process sees them; event loop thread only."""

    def __init__(self, process: str, name: str, permits: int, reserve: int) -> None:
        self._client = connect()
        self._script = self._client.register_script(HOLD)
        self._key = f"xalen:slots:{name}"
        self._name = name
        self._process = process
        self._all = permits
        self._reserve = reserve

    async def hold_live(self, wanted: int) -> Held:
        """Ask for this many permits for live calls. Raises UNAVAILABLE."""
        return Held(*await self._ask("live", wanted))

    async def hold_batch(self, *, used: int, share: int) -> Share:
        """Note the permits of a worker. `share`: those that it may use without live calls.

        `used`: permits that its lines are in, or may be in before this returns. Raises UNAVAILABLE.
        """
        permits, taken = await self._ask("batch", used, share)
        return Share(permits, taken > 0)

    async def call_workers(self) -> None:
        """Make the workers look for permits to give up now. Raises UNAVAILABLE."""
        async with asyncio.timeout(2 * REDIS_TIMEOUT):
            await self._client.publish(CHANNEL, self._name)

    async def give_back(self) -> None:
        """Give all permits back. Raises UNAVAILABLE."""
        async with asyncio.timeout(2 * REDIS_TIMEOUT):
            await self._client.hdel(self._key, self._process)

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, kind: str, *values: int) -> list[int]:
        asked: list[str | int] = [self._process, kind, KEPT_FOR, self._all, self._reserve, *values]
        async with asyncio.timeout(2 * REDIS_TIMEOUT):
            return await cast(Awaitable[list[int]], self._script([self._key], asked))


async def wanted() -> AsyncIterator[str]:
    """The names of backends whose permits live calls wait for, as they are told.

    Raises UNAVAILABLE when the connection is lost.
    """
    client = connect(silent_for=None)
    try:
        async with client.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(CHANNEL)
            async for message in channel.listen():
                yield message["data"].decode()
    finally:
        await client.aclose()

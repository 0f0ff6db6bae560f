"""How often something may be had: a bucket in Redis that all API processes draw from, and one
process's own while Redis is away.

A bucket holds what may be had at once (FEWEST at least), is full at first, and fills steadily. Who
finds it empty is told when to come back, each a little later than the one before, so that clients
which do as they are told find room (docs/decisions/0020).
"""

import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from xalen_batch import ids, log
from xalen_batch.config import settings

logger = log.get(__name__)

# Seconds that Redis has for an answer, and to take a connection; beyond that it is away, …
PATIENCE = 0.02
# … and is tried again after so many, by one request.
RETRY = 1.0
# Whoever is refused comes back within so many seconds.
LONGEST_WAIT = 30.0
# With room for one alone, whoever came back a moment late would leave too little for the next.
FEWEST = 2
# Seconds since its last request after which an API process counts no longer as one.
LIVE_FOR = 60
# A process that has never reached Redis takes itself for one of so many.
UNKNOWN_PROCESSES = 4
# Buckets of a process's own; beyond that those that were asked for first are forgotten.
MOST_OWN = 10_000
UNAVAILABLE = (redis.RedisError, OSError)


class Draw(NamedTuple):
    """What came of asking for one.

    Seconds: `wait` until it is worth asking again (0: it was granted), `reset` until the bucket is
    full.
    """

    limit: int
    remaining: int
    wait: float
    reset: float


# KEYS: the bucket, the processes. ARGV: rate, size, longest wait, this process, how long one is
# live, how many to take (0 or 1). `promised`: requests that were told to come back and have their
# places, paid off at the rate.
DRAW = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local rate, size, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[6])
local kept = redis.call('HMGET', KEYS[1], 'at', 'level', 'promised')
local filled = rate * math.max(0, now - (tonumber(kept[1]) or now))
local level = math.min(size, (tonumber(kept[2]) or size) + filled)
local promised = math.max(0, (tonumber(kept[3]) or 0) - filled)
local wait = 0
if level >= cost then
  level = level - cost
else
  wait = math.min(tonumber(ARGV[3]), (1 - level + promised) / rate)
  promised = math.min(promised + 1, rate * tonumber(ARGV[3]))
end
local exact = '%.17g'
redis.call('HSET', KEYS[1], 'at', exact:format(now), 'level', exact:format(level), 'promised', exact:format(promised))
redis.call('EXPIRE', KEYS[1], math.ceil((size + promised) / rate) + 1)
redis.call('ZADD', KEYS[2], now, ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[5]))
return {math.floor(level), math.ceil(wait * 1000000), math.ceil((size - level) / rate * 1000000), redis.call('ZCARD', KEYS[2])}
"""


@dataclass(slots=True)
class OwnBucket:
    """One process's share, by the same arithmetic."""

    rate: float
    size: float
    at: float
    level: float
    promised: float = 0.0

    def draw(self, limit: int, now: float, cost: int = 1) -> Draw:
        """`now`: seconds of a clock that only goes forward."""
        filled, self.at = self.rate * (now - self.at), now
        self.level = min(self.size, self.level + filled)
        self.promised = max(0.0, self.promised - filled)
        wait = 0.0
        if self.level >= cost:
            self.level -= cost
        else:
            wait = min(LONGEST_WAIT, (1 - self.level + self.promised) / self.rate)
            self.promised = min(self.promised + 1, self.rate * LONGEST_WAIT)
        return Draw(limit, min(limit, int(self.level)), wait, (self.size - self.level) / self.rate)


class Allowances:
    """The buckets of one API process. Safe to use from many threads at once."""

    def __init__(self, url: str | None) -> None:
        self._id = ids.new().hex
        self._processes = UNKNOWN_PROCESSES
        self._own: dict[str, OwnBucket] = {}
        self._lock = threading.Lock()
        self._retry_at = 0.0
        # A draw is not idempotent: it is never tried twice.
        connect = {
            "socket_timeout": PATIENCE,
            "socket_connect_timeout": PATIENCE,
            "retry": Retry(NoBackoff(), 0),
        }
        self._script = redis.Redis.from_url(url, **connect).register_script(DRAW) if url else None

    def draw(self, name: str, limit: int, seconds: float = 1.0, cost: int = 1) -> Draw:
        """Take `cost` (0 only looks) from a named bucket of `limit` per `seconds`.

        Never raises, and waits for Redis no longer than PATIENCE.
        """
        if self._script is not None and self._may_ask():
            try:
                draw = self._shared(name, limit, seconds, cost)
            except UNAVAILABLE as error:
                self._leave(error)
            else:
                self._return()
                return draw
        return self._alone(name, limit, seconds, cost)

    def _shared(self, name: str, limit: int, seconds: float, cost: int) -> Draw:
        assert self._script is not None
        keys = [f"xalen:allowances:{name}", "xalen:allowances"]
        asked: list[float | str] = [
            limit / seconds,
            max(FEWEST, limit),
            LONGEST_WAIT,
            self._id,
            LIVE_FOR,
            cost,
        ]
        remaining, wait, reset, self._processes = cast(list[int], self._script(keys, asked))
        return Draw(limit, min(limit, remaining), wait / 1e6, reset / 1e6)

    def _may_ask(self) -> bool:
        """While Redis is away, one request of many tries it; the others do not wait for that."""
        if not self._retry_at:
            return True
        with self._lock:
            if time.monotonic() < self._retry_at:
                return False
            self._retry_at = time.monotonic() + RETRY
            return True

    def _leave(self, error: Exception) -> None:
        with self._lock:
            if not self._retry_at:
                logger.warning(
                    "allowances.redis_away", error=type(error).__name__, processes=self._processes
                )
            self._retry_at = time.monotonic() + RETRY

    def _return(self) -> None:
        if self._retry_at:
            with self._lock:
                self._retry_at = 0.0
                self._own.clear()

    def _alone(self, name: str, limit: int, seconds: float, cost: int) -> Draw:
        now, share = time.monotonic(), limit / self._processes
        with self._lock:
            bucket = self._own.get(name)
            if bucket is None or bucket.rate != share / seconds:
                if len(self._own) >= MOST_OWN:
                    del self._own[next(iter(self._own))]
                size = max(FEWEST, share)
                bucket = self._own[name] = OwnBucket(share / seconds, size, now, size)
            return bucket.draw(limit, now, cost)


@cache
def _of(url: str | None) -> Allowances:
    return Allowances(url)


def draw(name: str, limit: int, seconds: float = 1.0, cost: int = 1) -> Draw:
    """Take `cost` (0 only looks) from a named bucket of `limit` per `seconds`."""
    url = settings().redis_url
    return _of(url and url.get_secret_value()).draw(name, limit, seconds, cost)

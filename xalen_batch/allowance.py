"""So many a minute for each name, all of them at once if need be: counted in Redis over all processes.

While Redis is away each process counts alone, so that no more than so many times the processes pass.
"""

import threading
import time
from functools import cache

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from xalen_batch import broker, log
from xalen_batch.errors import ConfigError

logger = log.get(__name__)

# Seconds that Redis has for an answer, and that it is left alone for when it had none.
PATIENCE = 0.25
PAUSE_AFTER_FAILURE = 2.0
AWAY = (redis.RedisError, OSError, ConfigError)
# Whole microseconds: with fractions, the last of a minute's worth may be missing.
MINUTE = 60_000_000
# Names that a process counts by itself; beyond that it forgets the oldest.
MOST_NAMES = 10_000

# What is kept is when the name has all of its minute's worth again; nothing is kept of one that has.
# KEYS: the name. ARGV: microseconds until one comes back, and until all do. Returns microseconds to wait for one.
# The clock is the server's; should it be set back, what is kept has expired a minute later.
TAKE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local whole = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now) + ARGV[1]
local wait = whole - now - ARGV[2]
if wait > 0 then
  return math.ceil(wait)
end
redis.call('SET', KEYS[1], ('%.0f'):format(whole), 'PX', math.ceil((whole - now) / 1000))
return 0
"""


class Allowance:
    """What each name may have of one kind of thing."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        # While Redis is away: when each name has all of its minute's worth again, by the monotonic clock.
        self._whole: dict[str, int] = {}
        self._lock = threading.Lock()
        self._alone_until = 0.0

    def take(self, name: str, per_minute: int) -> float:
        """0, and one is taken; or the seconds until there is one. Takes a quarter of a second at most."""
        if time.monotonic() >= self._alone_until:
            try:
                return _take(_client(broker.url()), f"xalen:allowance:{self._kind}:{name}", per_minute)
            except AWAY as error:
                self._alone_until = time.monotonic() + PAUSE_AFTER_FAILURE
                logger.warning("allowance.alone", kind=self._kind, error=type(error).__name__)
        return self._take_alone(name, per_minute)

    def _take_alone(self, name: str, per_minute: int) -> float:
        with self._lock:
            now = time.monotonic_ns() // 1000
            before = max(self._whole.pop(name, now), now)
            whole = before + MINUTE // per_minute
            wait = whole - now - MINUTE
            self._whole[name] = whole if wait <= 0 else before
            if len(self._whole) > MOST_NAMES:
                self._whole = {name: whole for name, whole in self._whole.items() if whole > now}
                while len(self._whole) > MOST_NAMES:
                    del self._whole[next(iter(self._whole))]
            return max(0, wait) / 1_000_000


def _take(client: redis.Redis, key: str, per_minute: int) -> float:
    return int(str(client.eval(TAKE, 1, key, str(MINUTE // per_minute), str(MINUTE)))) / 1_000_000


@cache
def _client(url: str) -> redis.Redis:
    # Never tries twice: what was taken is not given back.
    return redis.Redis.from_url(url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE, retry=Retry(NoBackoff(), 0))

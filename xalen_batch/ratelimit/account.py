"""The rate limits of an account: requests per second and changes per minute, as token buckets.

All API processes share the buckets in Redis. While Redis is unavailable, each process has local
buckets with its share of the rates.

A bucket holds `limit` tokens (SMALLEST_BUCKET at least), starts full, and refills at a constant
rate. A request that finds it empty is refused with a time to come back. Each such promise reserves
the next token, so clients that wait as told are served (docs/decisions/0020).
"""

import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy.orm import Session

from xalen_batch import ids, log
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.accounts.quotas import Quota, QuotaLimits
from xalen_batch.config import settings
from xalen_batch.errors import TooManyRequests

logger = log.get(__name__)

# Seconds for which a process keeps an account's limits before it reads them again.
KNOWN_FOR = 5.0
MOST_KNOWN = 10_000
MINUTE = 60.0
# Seconds for Redis to answer, and to accept a connection; without an answer it is unavailable.
REDIS_TIMEOUT = 0.02
# Seconds until one request tries an unavailable Redis again.
RETRY = 1.0
# Most seconds that a refused request is told to wait.
LONGEST_WAIT = 30.0
# With a single token, a client that comes back slightly late would delay the next promise.
SMALLEST_BUCKET = 2
# Seconds since its last request for which an API process counts as live.
LIVE_FOR = 60
# The number of API processes assumed by one that has never reached Redis.
UNKNOWN_PROCESSES = 4
# Local buckets of a process; the oldest is dropped beyond that.
MOST_LOCAL = 10_000
UNAVAILABLE = (redis.RedisError, OSError)
# Tokens for live calls are drawn in blocks, which a process drops after BLOCK_FOR seconds. A block
# has as many tokens as were used in that time, and at most this share of a bucket.
BLOCK_FOR, BLOCK_SHARE = 0.2, 1 / 20


class Draw(NamedTuple):
    """The result of one draw from a bucket.

    Seconds: `wait` until the request should come again (0: granted), `reset` until the bucket is
    full. `taken`: tokens.
    """

    limit: int
    remaining: int
    wait: float
    reset: float
    taken: int


@dataclass(slots=True)
class Block:
    """Tokens of an account that this process has drawn for live calls, in one draw of `size`."""

    drawn: Draw
    size: int
    left: int
    until: float


# The limits of each account as last read, and when to read them again.
_limits: dict[Owner, tuple[float, QuotaLimits]] = {}
_blocks: dict[Owner, Block] = {}
# A list for each request, as a holder: threads that serve the request see what is put into it, but
# not each other's changes of the variable.
_draws: ContextVar[list[Draw] | None] = ContextVar("draws", default=None)


def admit(session: Session, owner: Owner) -> None:
    """Admit a request of this account. Raises TooManyRequests if its limit is used up."""
    limit = _limits_of(session, owner)[Quota.REQUESTS_PER_SECOND]
    if limit is not None:
        _admit(draw(_bucket("requests", owner), limit))


def admit_known(owner: Owner) -> bool:
    """As `admit`, for live calls: without a look into the database, and seldom one into Redis.

    False: this process does not know the account's limit. Event loop thread only.
    """
    key, now = Owner(owner.account_id, owner.livemode), time.monotonic()
    until, limits = _limits.get(key, (0.0, {}))
    if now >= until:
        return False
    limit = limits[Quota.REQUESTS_PER_SECOND]
    if limit is not None:
        _admit(_draw_ahead(key, limit, now))
    return True


def _draw_ahead(owner: Owner, limit: int, now: float) -> Draw:
    """Take a token from the block of an account, or draw the next block."""
    block, size = _blocks.get(owner), 1
    if block is not None and now < block.until and block.drawn.limit == limit:
        if block.left:
            block.left -= 1
            return block.drawn._replace(remaining=block.drawn.remaining + block.left)
        size = min(block.size + 1, max(1, int(limit * BLOCK_SHARE)))
    elif block is not None:
        size = max(1, block.size - block.left)
    drawn = draw(_bucket("requests", owner), limit, cost=size)
    if len(_blocks) >= MOST_KNOWN:
        _blocks.clear()
    left = max(0, drawn.taken - 1)
    _blocks[owner] = Block(drawn, max(1, drawn.taken), left, now + BLOCK_FOR)
    return drawn._replace(remaining=drawn.remaining + left)


def _admit(drawn: Draw) -> None:
    """Note the draw of a request. Raises TooManyRequests if no token was left."""
    draws = _draws.get()
    if draws is not None:
        draws[:] = [drawn]
    if drawn.wait:
        raise TooManyRequests(
            f"The account's limit is {drawn.limit:,} requests per second. Send this one again when"
            " `retry-after` is over.",
            retry_after=drawn.wait,
        )


def admit_change(session: Session, owner: Owner) -> None:
    """Admit a request that makes, changes or deletes something.

    Raises TooManyRequests if the account's limit per minute is used up.
    """
    limit = _limits_of(session, owner)[Quota.CHANGES_PER_MINUTE]
    if limit is None:
        return
    drawn = draw(_bucket("changes", owner), limit, MINUTE)
    if drawn.wait:
        raise TooManyRequests(
            f"The account's limit is {limit:,} requests per minute that make, change or delete"
            " something. Send this one again when `retry-after` is over.",
            retry_after=drawn.wait,
            code=f"{Quota.CHANGES_PER_MINUTE}_limit",
        )


def changes(session: Session, owner: Owner) -> Draw | None:
    """The state of the bucket of changes, without taking a token; None if they have no limit."""
    limit = _limits_of(session, owner)[Quota.CHANGES_PER_MINUTE]
    if limit is None:
        return None
    return draw(_bucket("changes", owner), limit, MINUTE, cost=0)


def begin() -> list[Draw]:
    """Set and return the holder of this request's draw: an empty list, filled by `admit`."""
    draws: list[Draw] = []
    _draws.set(draws)
    return draws


def current() -> Draw | None:
    """The draw of the request that is answered now; None if the account has no limit."""
    return next(iter(_draws.get() or ()), None)


def draw(name: str, limit: int, seconds: float = 1.0, cost: int = 1) -> Draw:
    """Take up to `cost` tokens (0 only reads) from the named bucket of `limit` per `seconds`."""
    url = settings().redis_url
    return _buckets_of(url and url.get_secret_value()).draw(name, limit, seconds, cost)


def _bucket(of: str, owner: Owner) -> str:
    return f"{of}:{owner.account_id.hex}:{'live' if owner.livemode else 'test'}"


def _limits_of(session: Session, owner: Owner) -> QuotaLimits:
    key = Owner(owner.account_id, owner.livemode)
    until, limits = _limits.get(key, (0.0, {}))
    now = time.monotonic()
    if now >= until:
        if len(_limits) >= MOST_KNOWN:
            _limits.clear()
        limits = quotas.limits(session, owner)
        _limits[key] = now + KNOWN_FOR, limits
    return limits


# KEYS: the bucket, the set of API processes. ARGV: rate, size, longest wait, this process, seconds
# for which a process is live, most tokens to take (0: none). `promised`: tokens that refused requests
# were told to come back for; the promises are paid off at the rate.
DRAW = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local rate, size, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[6])
local kept = redis.call('HMGET', KEYS[1], 'at', 'level', 'promised')
local filled = rate * math.max(0, now - (tonumber(kept[1]) or now))
local level = math.min(size, (tonumber(kept[2]) or size) + filled)
local promised = math.max(0, (tonumber(kept[3]) or 0) - filled)
local wait, taken = 0, math.min(cost, math.floor(level))
if cost == 0 or taken > 0 then
  level = level - taken
else
  wait = math.min(tonumber(ARGV[3]), (1 - level + promised) / rate)
  promised = math.min(promised + 1, rate * tonumber(ARGV[3]))
end
local exact = '%.17g'
redis.call('HSET', KEYS[1], 'at', exact:format(now), 'level', exact:format(level), 'promised', exact:format(promised))
redis.call('EXPIRE', KEYS[1], math.ceil((size + promised) / rate) + 1)
redis.call('ZADD', KEYS[2], now, ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[5]))
return {math.floor(level), math.ceil(wait * 1000000), math.ceil((size - level) / rate * 1000000), redis.call('ZCARD', KEYS[2]), taken}
"""


@dataclass(slots=True)
class AccountBucket:
    """A local bucket with one process's share, by the arithmetic of DRAW; not thread-safe."""

    rate: float
    size: float
    at: float
    level: float
    promised: float = 0.0

    def draw(self, limit: int, now: float, cost: int = 1) -> Draw:
        """Take up to `cost` tokens. `now`: seconds of a monotonic clock."""
        filled = self.rate * (now - self.at)
        self.at = now
        self.level = min(self.size, self.level + filled)
        self.promised = max(0.0, self.promised - filled)
        wait, taken = 0.0, min(cost, int(self.level))
        if not cost or taken:
            self.level -= taken
        else:
            wait = min(LONGEST_WAIT, (1 - self.level + self.promised) / self.rate)
            self.promised = min(self.promised + 1, self.rate * LONGEST_WAIT)
        reset = (self.size - self.level) / self.rate
        return Draw(limit, min(limit, int(self.level)), wait, reset, taken)


class AccountBuckets:
    """The buckets as one API process sees them; any thread."""

    def __init__(self, url: str | None) -> None:
        self._id = ids.new().hex
        self._processes = UNKNOWN_PROCESSES
        self._local: dict[str, AccountBucket] = {}
        self._lock = threading.Lock()
        # When to try an unavailable Redis again; 0: it is available.
        self._retry_at = 0.0
        # Without retries: a draw is not idempotent.
        connect = {
            "socket_timeout": REDIS_TIMEOUT,
            "socket_connect_timeout": REDIS_TIMEOUT,
            "retry": Retry(NoBackoff(), 0),
        }
        self._script = redis.Redis.from_url(url, **connect).register_script(DRAW) if url else None

    def draw(self, name: str, limit: int, seconds: float = 1.0, cost: int = 1) -> Draw:
        """Take up to `cost` tokens (0 only reads) from the named bucket of `limit` per `seconds`.

        Never raises, and waits for Redis for REDIS_TIMEOUT at most.
        """
        if self._script is not None and self._may_ask():
            try:
                drawn = self._draw_shared(name, limit, seconds, cost)
            except UNAVAILABLE as error:
                self._leave(error)
            else:
                self._return()
                return drawn
        return self._draw_local(name, limit, seconds, cost)

    def _draw_shared(self, name: str, limit: int, seconds: float, cost: int) -> Draw:
        assert self._script is not None
        keys = [f"xalen:allowances:{name}", "xalen:allowances"]
        asked: list[float | str] = [
            limit / seconds,
            max(SMALLEST_BUCKET, limit),
            LONGEST_WAIT,
            self._id,
            LIVE_FOR,
            cost,
        ]
        got = cast(list[int], self._script(keys, asked))
        remaining, wait, reset, self._processes, taken = got
        return Draw(limit, min(limit, remaining), wait / 1e6, reset / 1e6, taken)

    def _may_ask(self) -> bool:
        """Whether to ask Redis. While it is unavailable, one request per RETRY seconds does."""
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
                self._local.clear()

    def _draw_local(self, name: str, limit: int, seconds: float, cost: int) -> Draw:
        now, share = time.monotonic(), limit / self._processes
        with self._lock:
            bucket = self._local.get(name)
            if bucket is None or bucket.rate != share / seconds:
                if len(self._local) >= MOST_LOCAL:
                    del self._local[next(iter(self._local))]
                size = max(SMALLEST_BUCKET, share)
                bucket = self._local[name] = AccountBucket(share / seconds, size, now, size)
            return bucket.draw(limit, now, cost)


@cache
def _buckets_of(url: str | None) -> AccountBuckets:
    return AccountBuckets(url)

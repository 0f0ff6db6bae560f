"""The rate limits of one backend: requests and tokens per minute over all worker processes.

A process takes grants from the shared bucket in blocks: for the requests that wait, and for those
expected within BLOCK_SECONDS. So most requests cost no round trip to Redis. While Redis is
unavailable, each process uses its share of the limits (docs/decisions/0013).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass

from xalen_batch import log
from xalen_batch.endpoints.names import Endpoint
from xalen_batch.endpoints.operations import OPERATIONS
from xalen_batch.ratelimit.buckets import (
    HOLD,
    UNAVAILABLE,
    Ask,
    Grant,
    LocalBucket,
    RateLimit,
    RateLimits,
    SharedBucket,
)

logger = log.get(__name__)

# Seconds that a block of grants is meant for.
BLOCK_SECONDS = HOLD / 2
# Seconds after which unused grants are returned, with corrections: before they expire.
RETURNED_AFTER = HOLD * 3 / 4
# Seconds until an empty bucket is asked again: at least, so that requests gather meanwhile, and at
# most, as another process may have returned tokens.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
# Seconds between two attempts to reach an unavailable Redis.
RETRY = 1.0
# Estimated tokens of an answer, if the request sets no limit.
TYPICAL_ANSWER = 512


def estimate(body: bytes, endpoint: Endpoint) -> int:
    """Estimated tokens of a request: a quarter of its bytes plus the longest answers it allows.

    An answer without a limit counts TYPICAL_ANSWER. The usage of the answer corrects the estimate
    (`Rates.settle`).
    """
    count, longest = OPERATIONS[endpoint].answers(body)
    return len(body) // 4 + 1 + count * (longest or TYPICAL_ANSWER)


@dataclass(eq=False, slots=True)
class _Waiter:
    tokens: int
    turn: asyncio.Future[None]


class Rates:
    """The rate limits of one backend in one process; event loop thread only, except `wait`.

    `workers` returns the number of processes that share the limits while Redis is unavailable.
    """

    def __init__(
        self,
        name: str,
        *,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        workers: Callable[[], int],
    ) -> None:
        self._name = name
        self._limits = RateLimits(
            *(
                RateLimit(limit) if limit else None
                for limit in (requests_per_minute, tokens_per_minute)
            )
        )
        self._workers = workers
        self._loop = asyncio.get_running_loop()
        self._shared = SharedBucket(name, self._limits)
        # The bucket used while Redis is unavailable.
        self._local: LocalBucket | None = None
        self._retry_at = 0.0
        # Unused grants, and when they expire.
        self._requests = 0
        self._tokens = 0
        self._expires = 0.0
        # Corrections for the bucket, sent with the next call.
        self._owed_requests = 0
        self._owed_tokens = 0
        self._waiting: deque[_Waiter] = deque()
        self._waiting_tokens = 0
        self._open_at = 0.0
        # When grants were last asked for, and what was used since: the size of the next block.
        self._asked_at = self._loop.time()
        self._passed = 0
        self._passed_tokens = 0
        self._is_short = False
        self._is_open = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._correcting: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def admit(self, tokens: int) -> None:
        """Wait until a request of about `tokens` tokens may be sent.

        Requests of this process are admitted in order of arrival. A cancelled call leaves its grant
        to the next.
        """
        if not any(self._limits):
            return
        tokens = tokens if self._limits.tokens else 0
        if not self._waiting and self._loop.time() < self._expires and self._use(tokens):
            return
        waiter = _Waiter(tokens, self._loop.create_future())
        self._waiting.append(waiter)
        self._waiting_tokens += tokens
        if self._serving is None or self._serving.done():
            self._serving = self._start(self._serve())
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if not waiter.turn.cancelled():
                self._requests += 1
                self._tokens += tokens
                self._let_pass()
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
                self._waiting_tokens -= tokens
            raise

    def settle(self, estimated: int, used: int | None) -> None:
        """Correct the estimate of a request by the tokens it used; None if it used none.

        Best effort: a correction may be lost with Redis.
        """
        if self._limits.tokens:
            self._owed_tokens += (used or 0) - estimated
            self._correct_later()

    @property
    def wait(self) -> float:
        """Estimated seconds that a new request would wait, from the state of this process."""
        now = self._loop.time()
        if not self._waiting:
            return max(0.0, self._open_at - now)
        behind = zip(self._limits, (len(self._waiting), self._waiting_tokens), strict=True)
        seconds = max((count / limit.rate for limit, count in behind if limit), default=0.0)
        return max(0.0, self._open_at - now) + seconds * self._shares

    async def close(self) -> None:
        """Return unused grants and close the connection. No call of `admit` may be waiting."""
        if self._correcting is not None:
            self._correcting.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._local is None:
            self._return_unused()
            with suppress(*UNAVAILABLE):
                await self._shared.take(self._corrections())
        await self._shared.close()

    @property
    def _shares(self) -> int:
        return max(1, self._workers())

    def _use(self, tokens: int) -> bool:
        if self._requests < 1 or self._tokens < tokens:
            return False
        self._requests -= 1
        self._tokens -= tokens
        self._passed += 1
        self._passed_tokens += tokens
        return True

    def _let_pass(self) -> None:
        while self._waiting:
            waiter = self._waiting[0]
            # A cancelled waiter stays in the queue until its coroutine runs.
            if not waiter.turn.cancelled():
                if not self._use(waiter.tokens):
                    return
                waiter.turn.set_result(None)
            self._waiting.popleft()
            self._waiting_tokens -= waiter.tokens

    async def _serve(self) -> None:
        """Ask for grants until no request waits."""
        while self._waiting:
            await self._ask()
            self._let_pass()
            if self._waiting and self._is_short:
                self._is_open.clear()
                pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, self._open_at - self._loop.time()))
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._is_open.wait()

    async def _ask(self) -> None:
        self._return_unused()
        now = self._loop.time()
        ahead, tokens_ahead = self._ahead(now)
        self._asked_at, self._passed, self._passed_tokens = now, 0, 0
        ask = self._corrections()._replace(
            requests=len(self._waiting) + ahead,
            tokens=self._waiting_tokens + tokens_ahead,
            first=self._waiting[0].tokens,
        )
        grant = await self._take(ask)
        self._requests += grant.requests
        self._tokens += grant.tokens
        self._expires = now + HOLD
        self._is_short = grant.requests < ask.requests or grant.tokens < ask.tokens
        self._correct_later()

    def _ahead(self, now: float) -> tuple[int, int]:
        """Requests and tokens to ask for in advance, from the use since the last call.

        0 while grants are scarce.
        """
        if self._is_short:
            return 0, 0
        # At most the use since the last call, and at most a block's part of the limit.
        share = min(1.0, BLOCK_SECONDS / max(now - self._asked_at, BLOCK_SECONDS))
        for limit, passed in zip(self._limits, (self._passed, self._passed_tokens), strict=True):
            if limit and passed:
                share = min(share, limit.rate * BLOCK_SECONDS / passed)
        return int(self._passed * share), int(self._passed_tokens * share)

    def _return_unused(self) -> None:
        # Expired grants are not returned: they would count in another minute than they were taken
        # from.
        if self._loop.time() < self._expires:
            self._owed_requests -= self._requests
            self._owed_tokens -= self._tokens
        self._requests = self._tokens = 0

    def _corrections(self) -> Ask:
        ask = Ask(spent_requests=self._owed_requests, spent_tokens=self._owed_tokens)
        self._owed_requests = self._owed_tokens = 0
        return ask

    def _correct_later(self) -> None:
        # The next call for grants may come first and send the corrections.
        if self._correcting is None:
            self._correcting = self._loop.call_at(
                max(self._loop.time() + BLOCK_SECONDS, self._asked_at + RETURNED_AFTER),
                self._correct,
            )

    def _correct(self) -> None:
        self._correcting = None
        if self._loop.time() < self._asked_at + RETURNED_AFTER:
            self._correct_later()
            return
        self._return_unused()
        if self._owed_requests or self._owed_tokens:
            self._start(self._send_corrections())

    async def _send_corrections(self) -> None:
        grant = await self._take(self._corrections())
        if not grant.wait:
            self._is_open.set()

    async def _take(self, ask: Ask) -> Grant:
        grant = None
        if self._local is None:
            try:
                grant = await self._shared.take(ask)
            except UNAVAILABLE as error:
                self._leave(error)
        if grant is None:
            grant = self._take_alone(ask)
        self._open_at = self._loop.time() + grant.wait
        return grant

    def _leave(self, error: BaseException) -> None:
        if self._local is None:
            logger.warning(
                "rates.alone", backend=self._name, error=type(error).__name__, shares=self._shares
            )
            self._local = LocalBucket(self._limits, self._loop.time())
            self._retry_at = self._loop.time() + RETRY

    def _take_alone(self, ask: Ask) -> Grant:
        assert self._local is not None
        now = self._loop.time()
        if now >= self._retry_at:
            self._retry_at = now + RETRY
            self._start(self._return_to_shared())
        return self._local.take(ask, self._shares, now)

    async def _return_to_shared(self) -> None:
        with suppress(*UNAVAILABLE):
            await self._shared.take(Ask())
            self._local = None
            logger.info("rates.shared", backend=self._name)

    def _start(self, act: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(act)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

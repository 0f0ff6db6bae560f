"""How fast one backend may be asked: requests and tokens per minute, counted over all worker
processes (docs/decisions/0013).

A process takes grants from the shared bucket in blocks, as many as wait and as it will need in the
next moment, so that most requests cost no round trip. While Redis is away it goes on at its share.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from xalen_batch import log
from xalen_batch.catalog import RERANK, Endpoint
from xalen_batch.ratelimit.buckets import (
    HOLD,
    UNAVAILABLE,
    Ask,
    Grant,
    Limit,
    Limits,
    OwnBucket,
    SharedBucket,
)

logger = log.get(__name__)

# A block is for about so many seconds, …
BLOCK = HOLD / 2
# … and what is unused of it goes back after so many, before it expires; corrections go with it.
UNUSED = HOLD * 3 / 4
# A bucket that had too little is asked again after this many seconds at least, for as much as came
# in meanwhile, …
BREATH = 0.02
# … and at most: another process may have given tokens back.
LOOK_AGAIN = 1.0
# Seconds between two tries to reach a Redis that is away.
RETRY = 1.0
# Tokens of an answer to a request that sets no limit to it.
TYPICAL_ANSWER = 512


class _Length(msgspec.Struct):
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


# Not strict: 256.0 is the whole number 256.
_length = msgspec.json.Decoder(_Length, strict=False)


def estimate(body: bytes, endpoint: Endpoint) -> int:
    """Tokens to expect of a request: a quarter of its bytes, and the longest answers it allows.

    A chat that sets no limit counts as TYPICAL_ANSWER for each choice; a rerank writes nothing. It
    is a few microseconds' work; the answer's usage corrects it (`Rates.settle`).
    """
    read = len(body) // 4 + 1
    if endpoint == RERANK:
        return read
    try:
        asked = _length.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The backend will refuse it.
        asked = _Length()
    return read + (asked.n or 1) * (
        asked.max_completion_tokens or asked.max_tokens or TYPICAL_ANSWER
    )


@dataclass(eq=False, slots=True)
class _Waiter:
    tokens: int
    turn: asyncio.Future[None]


class Rates:
    """One backend's limits in one process. Made and used on the event loop, and closed there.

    `workers` says how many processes share the limits, for the time that Redis is away.
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
        self._limits = Limits(
            *(Limit(limit) if limit else None for limit in (requests_per_minute, tokens_per_minute))
        )
        self._workers = workers
        self._loop = asyncio.get_running_loop()
        self._shared = SharedBucket(name, self._limits)
        # While Redis is away.
        self._own: OwnBucket | None = None
        self._retry_at = 0.0
        # Granted and not used.
        self._requests = 0
        self._tokens = 0
        self._expires = 0.0
        # Corrections for the bucket, to go with the next call.
        self._owed_requests = 0
        self._owed_tokens = 0
        self._waiting: deque[_Waiter] = deque()
        self._waiting_tokens = 0
        self._open_at = 0.0
        # Since the last call for grants, which the next one's size follows.
        self._asked_at = self._loop.time()
        self._passed = 0
        self._passed_tokens = 0
        self._is_short = False
        self._is_open = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._correcting: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def admit(self, tokens: int) -> None:
        """Return when one request of about so many tokens may be sent; first come, first served
        within this process.

        One that is cancelled leaves its grant to the next.
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
        """Correct the account of tokens by what a request used; None: nothing, as it failed or was
        refused. Best effort.
        """
        if self._limits.tokens:
            self._owed_tokens += (used or 0) - estimated
            self._correct_later()

    @property
    def wait(self) -> float:
        """Seconds that a new request would have to wait, about; 0: none.

        An estimate from what this process knows.
        """
        now = self._loop.time()
        if not self._waiting:
            return max(0.0, self._open_at - now)
        behind = zip(self._limits, (len(self._waiting), self._waiting_tokens), strict=True)
        seconds = max((count / limit.rate for limit, count in behind if limit), default=0.0)
        return max(0.0, self._open_at - now) + seconds * self._shares

    async def close(self) -> None:
        """Give back what is not used, and end the connection. Nobody may wait any more."""
        if self._correcting is not None:
            self._correcting.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._own is None:
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
            # A cancelled one has not yet come round to leave by itself.
            if not waiter.turn.cancelled():
                if not self._use(waiter.tokens):
                    return
                waiter.turn.set_result(None)
            self._waiting.popleft()
            self._waiting_tokens -= waiter.tokens

    async def _serve(self) -> None:
        """Ask for grants until nobody waits."""
        while self._waiting:
            await self._ask()
            self._let_pass()
            if self._waiting and self._is_short:
                self._is_open.clear()
                pause = min(LOOK_AGAIN, max(BREATH, self._open_at - self._loop.time()))
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
        """Requests and tokens of the next block, if they go on coming as since the last call; none
        while grants are scarce.
        """
        if self._is_short:
            return 0, 0
        # At most as many again, and at most a block's part of the whole limit.
        share = min(1.0, BLOCK / max(now - self._asked_at, BLOCK))
        for limit, passed in zip(self._limits, (self._passed, self._passed_tokens), strict=True):
            if limit and passed:
                share = min(share, limit.rate * BLOCK / passed)
        return int(self._passed * share), int(self._passed_tokens * share)

    def _return_unused(self) -> None:
        # What expired unused is lost: given back so late, it would count in another minute than it
        # was taken from.
        if self._loop.time() < self._expires:
            self._owed_requests -= self._requests
            self._owed_tokens -= self._tokens
        self._requests = self._tokens = 0

    def _corrections(self) -> Ask:
        ask = Ask(spent_requests=self._owed_requests, spent_tokens=self._owed_tokens)
        self._owed_requests = self._owed_tokens = 0
        return ask

    def _correct_later(self) -> None:
        # The next call for grants may well come first and take everything along.
        if self._correcting is None:
            self._correcting = self._loop.call_at(
                max(self._loop.time() + BLOCK, self._asked_at + UNUSED), self._correct
            )

    def _correct(self) -> None:
        self._correcting = None
        if self._loop.time() < self._asked_at + UNUSED:
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
        if self._own is None:
            try:
                grant = await self._shared.take(ask)
            except UNAVAILABLE as error:
                self._leave(error)
        if grant is None:
            grant = self._take_alone(ask)
        self._open_at = self._loop.time() + grant.wait
        return grant

    def _leave(self, error: BaseException) -> None:
        if self._own is None:
            logger.warning(
                "rates.alone", backend=self._name, error=type(error).__name__, shares=self._shares
            )
            self._own = OwnBucket(self._limits, self._loop.time())
            self._retry_at = self._loop.time() + RETRY

    def _take_alone(self, ask: Ask) -> Grant:
        assert self._own is not None
        now = self._loop.time()
        if now >= self._retry_at:
            self._retry_at = now + RETRY
            self._start(self._return_to_shared())
        return self._own.take(ask, self._shares, now)

    async def _return_to_shared(self) -> None:
        with suppress(*UNAVAILABLE):
            await self._shared.take(Ask())
            self._own = None
            logger.info("rates.shared", backend=self._name)

    def _start(self, act: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(act)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

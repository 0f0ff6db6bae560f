"""The permits of live calls in one API process: who may send now, and who waits."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from xalen_batch import ids, log
from xalen_batch.api.live import errors
from xalen_batch.ratelimit.permits import UNAVAILABLE, SharedPermits, reserve_of

logger = log.get(__name__)

# Seconds between two renewals of the permits, and seconds without a call after which all are given
# back. A renewal keeps the permits that were in use at a time since the one before the last.
RENEWAL, FORGOTTEN_AFTER = 0.25, 30.0
# Seconds until permits are asked for again while calls wait for lines of batches to be answered.
ASK_AGAIN = 0.005
# Most calls that wait for a permit in one process; further ones are told that the model is busy.
MOST_WAITING = 1_000
_process = ids.new().hex


class LivePermits:
    """The permits of one backend that this process holds; event loop thread only."""

    def __init__(self, model: str, name: str, most: int, reserve: int) -> None:
        self._model = model
        self._most = most
        self._alone = reserve_of(most, reserve)
        self._shared = SharedPermits(_process, name, most, reserve)
        self._held = 0
        self._used = 0
        # The most permits in use since the last renewal, and between the two before; when a call
        # last came.
        self._peak = self._peak_before = 0
        self._called_at = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._asking: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._is_away = False
        # One request at a time: answers that overtake each other would leave `_held` wrong.
        self._holding = asyncio.Lock()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A permit for one call. Raises TooManyRequests if the backend has none for live calls."""
        self._called_at = asyncio.get_running_loop().time()
        if self._used >= self._held or self._waiting:
            await self._wait()
        else:
            self._take()
        try:
            yield
        finally:
            self._used -= 1
            self._let_pass()

    async def close(self) -> None:
        """Give every permit back."""
        tasks = [task for task in (self._asking, self._renewing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(*UNAVAILABLE):
            await self._shared.give_back()
        await self._shared.close()

    def _take(self) -> None:
        self._used += 1
        self._peak = max(self._peak, self._used)

    async def _wait(self) -> None:
        if len(self._waiting) >= MOST_WAITING:
            raise errors.busy(self._model, None)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # The permit was granted as its call was given up.
                self._used -= 1
                self._let_pass()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _let_pass(self) -> None:
        while self._waiting and self._used < self._held:
            turn = self._waiting.popleft()
            if not turn.done():
                self._take()
                turn.set_result(None)

    async def _ask(self) -> None:
        """Ask for permits until no call waits."""
        told = 0
        while self._waiting:
            wanted, possible = await self._hold()
            self._let_pass()
            # What no batch can give way for.
            while self._waiting and self._used + len(self._waiting) > possible:
                turn = self._waiting.pop()
                if not turn.done():
                    turn.set_exception(errors.busy(self._model, None))
            if self._waiting:
                # Workers that give way need not be told again.
                if wanted != told:
                    await self._call_workers()
                told = wanted
                await asyncio.sleep(ASK_AGAIN)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew())

    async def _hold(self, least: int = 1) -> tuple[int, int]:
        """Hold permits for all calls, `least` or more; those asked for, and those possible."""
        async with self._holding:
            wanted = min(max(self._used + len(self._waiting), least), self._most)
            # Permits that are given back are not used from now on.
            self._held = min(self._held, wanted)
            try:
                found = await self._shared.hold_live(wanted)
            except UNAVAILABLE as error:
                if not self._is_away:
                    logger.warning("permits.alone", model=self._model, error=type(error).__name__)
                self._is_away = True
                self._held = self._alone
                return wanted, self._alone
            self._is_away = False
            self._held = found.held
            return wanted, found.possible

    async def _call_workers(self) -> None:
        if not self._is_away:
            with suppress(*UNAVAILABLE):
                await self._shared.call_workers()

    async def _renew(self) -> None:
        """Renew the permits, and give back those that are not used."""
        loop = asyncio.get_running_loop()
        while self._used or self._waiting or loop.time() < self._called_at + FORGOTTEN_AFTER:
            await asyncio.sleep(RENEWAL)
            held, least = self._held, max(self._peak, self._peak_before, 1)
            self._peak_before, self._peak = self._peak, self._used
            await self._hold(least)
            self._let_pass()
            if self._held < held:
                await self._call_workers()
        self._held = 0
        with suppress(*UNAVAILABLE):
            await self._shared.give_back()

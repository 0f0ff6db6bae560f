"""The slots of live calls in one API process: who may send now, and who waits."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from xalen_batch import ids, log
from xalen_batch.api.live import errors
from xalen_batch.ratelimit.slots import UNAVAILABLE, SharedSlots, reserve_of

logger = log.get(__name__)

# A process holds this many times the slots that it uses, so that most calls ask nobody.
HEADROOM = 1.25
# Seconds after which unused slots are given back, and seconds without a call after which all are.
GIVEN_BACK_AFTER, FORGOTTEN_AFTER = 1.0, 30.0
# Seconds until slots are asked for again while calls wait for lines of batches to be answered.
ASK_AGAIN = 0.01
# Most calls that wait for a slot in one process; further ones are told that the model is busy.
MOST_WAITING = 1_000
_process = ids.new().hex


class LiveSlots:
    """The slots of one backend that this process holds; event loop thread only."""

    def __init__(self, model: str, name: str, most: int, reserve: int) -> None:
        self._model = model
        self._most = most
        self._alone = reserve_of(most, reserve)
        self._shared = SharedSlots(_process, name, most, reserve)
        self._held = 0
        self._used = 0
        # The most slots in use since the last second, and when a call last came.
        self._peak = 0
        self._called_at = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._asking: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._is_away = False

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A slot for one call. Raises TooManyRequests if the backend has none for live calls."""
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
        """Give every slot back."""
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
                # The slot was granted as its call was given up.
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
        """Ask for slots until no call waits."""
        while self._waiting:
            possible = await self._hold(math.ceil(HEADROOM * (self._used + len(self._waiting))))
            self._let_pass()
            # What no batch can give way for.
            while self._waiting and self._used + len(self._waiting) > possible:
                turn = self._waiting.pop()
                if not turn.done():
                    turn.set_exception(errors.busy(self._model, None))
            if self._waiting:
                if not self._is_away:
                    with suppress(*UNAVAILABLE):
                        await self._shared.call_workers()
                await asyncio.sleep(ASK_AGAIN)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew())

    async def _hold(self, wanted: int) -> int:
        """Hold up to this many slots, and return how many are possible."""
        try:
            found = await self._shared.hold_live(min(wanted, self._most))
        except UNAVAILABLE as error:
            if not self._is_away:
                logger.warning("slots.alone", model=self._model, error=type(error).__name__)
            self._is_away = True
            self._held = self._alone
            return self._alone
        self._is_away = False
        self._held = found.held
        return found.possible

    async def _renew(self) -> None:
        """Renew the slots each second, and give back those that are not used."""
        loop = asyncio.get_running_loop()
        while self._used or self._waiting or loop.time() < self._called_at + FORGOTTEN_AFTER:
            await asyncio.sleep(GIVEN_BACK_AFTER)
            peak, self._peak = self._peak, self._used
            await self._hold(math.ceil(HEADROOM * max(peak, 1)))
            self._let_pass()
        self._held = 0
        with suppress(*UNAVAILABLE):
            await self._shared.give_back()

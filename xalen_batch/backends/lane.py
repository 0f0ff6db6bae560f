"""One backend as one worker process uses it: a queue of lines, and as many pumps as it may have requests in flight."""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from xalen_batch import log
from xalen_batch.backends.circuit import Circuit
from xalen_batch.backends.concurrency import Concurrency, Verdict
from xalen_batch.backends.contract import Answered, Backend, Outcome, Refused, Request, Retryable
from xalen_batch.backends.rates import Rates, estimate
from xalen_batch.config import settings

logger = log.get(__name__)

# Lines for so many seconds wait behind those in flight, so that the pipe stays full while more are claimed.
BACKLOG = 0.5


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The line used up its attempts; `last` is what the last one met."""

    last: Retryable
    attempts: int


@dataclass(frozen=True, slots=True)
class NotRun:
    """The line has no outcome and goes back to its task: its work was stopped, or the backend is broken."""


Ended = Answered | Refused | Exhausted
NOT_RUN = NotRun()


class Line(Protocol):
    """What a lane needs to know of a line."""

    @property
    def request(self) -> Request: ...


class Work(Protocol):
    """Lines that came together and go on together. Called on the event loop."""

    is_stopped: bool

    def over(self, line: Any, outcome: Ended | NotRun) -> None:
        """Called once for each line."""
        ...


@dataclass(eq=False, slots=True)
class _Entry:
    """A line on its way through a lane."""

    work: Work
    line: Line
    attempts: int = 0
    failed: int = 0
    is_sent: bool = False


class Lane:
    """Made and used on the event loop; `unfinished`, `limit` and `room` may be read from any thread.

    `ceiling`: most requests in flight at the backend, over all worker processes; each takes an equal share.
    `rates`: how fast it may be asked, None where nothing limits that. `on_room`: called on the loop when there is room again.
    """

    def __init__(
        self,
        backend: Backend,
        ceiling: int,
        name: str = "",
        *,
        workers: int = 1,
        rates: Rates | None = None,
        on_room: Callable[[], object] = lambda: None,
    ) -> None:
        self.backend = backend
        self._rates = rates
        self._on_room = on_room
        self._was_full = False
        self.circuit = Circuit(name)
        self.unfinished = 0
        self._ceiling = ceiling
        self._concurrency = Concurrency(_share(ceiling, workers))
        # FIFO: the lines of the task that was claimed first are sent first.
        self._waiting: deque[_Entry] = deque()
        self._pausing: dict[_Entry, asyncio.TimerHandle] = {}
        # Refused although it was the only one: until it is tried again, nothing else is.
        self._refused: _Entry | None = None
        # What each pump sends now.
        self._pumps: dict[asyncio.Task[None], _Entry | None] = {}

    @property
    def limit(self) -> int:
        """Most requests in flight now."""
        return self._concurrency.limit

    @property
    def room(self) -> int:
        """How many more lines should be claimed for this backend; 0 while there are enough, or while it is left alone.

        Enough wait behind those in flight that the pipe stays full while a task is claimed, and not more, so
        that later claims can still be fair. A claim is worth its cost when half of them are gone.
        """
        if self.circuit.pause or (self._rates is not None and self._rates.wait > BACKLOG):
            return 0
        backlog = max(self.limit, int(self._concurrency.goodput * BACKLOG))
        missing = self.limit + backlog - self.unfinished
        return missing if 2 * missing > backlog else 0

    def share(self, workers: int) -> None:
        """So many worker processes use the backend now, this one included."""
        self._concurrency.ceiling = _share(self._ceiling, workers)
        self._fill()

    def add(self, work: Work, lines: Sequence[Line]) -> None:
        """Send these lines behind all that are here."""
        self.unfinished += len(lines)
        self._waiting.extend(_Entry(work, line) for line in lines)
        self._was_full = not self.room
        self._fill()

    def stop(self, work: Work) -> None:
        """Give back at once those lines of a stopped work that are not in flight."""
        for entry in [entry for entry in self._pausing if entry.work is work]:
            self._pausing.pop(entry).cancel()
            self._over(entry, NOT_RUN)
            self._goes_on(entry)
        stopped = [entry for entry in self._waiting if entry.work is work]
        self._waiting = deque(entry for entry in self._waiting if entry.work is not work)
        for entry in stopped:
            self._over(entry, NOT_RUN)
        # Those that wait for their rate.
        self._cancel(work, is_sent=False)
        self._fill()

    def cut(self, work: Work) -> None:
        """Give up the requests of a stopped work that are in flight."""
        self._cancel(work, is_sent=True)

    async def close(self) -> None:
        """Give back what it may still send. Nothing may be on its way any more."""
        if self._rates is not None:
            await self._rates.close()

    def _cancel(self, work: Work, *, is_sent: bool) -> None:
        for pump, entry in list(self._pumps.items()):
            if entry is not None and entry.work is work and entry.is_sent is is_sent:
                pump.cancel()

    def _fill(self) -> None:
        if self._refused is not None:
            return
        for _ in range(min(self.limit - len(self._pumps), len(self._waiting))):
            self._pumps[asyncio.create_task(self._pump())] = None

    async def _pump(self) -> None:
        """Send line after line, until none waits or the limit has fallen."""
        me = asyncio.current_task()
        assert me is not None
        try:
            while len(self._pumps) <= self.limit and (entry := self._next()) is not None:
                self._pumps[me] = entry
                await self._send(entry)
                self._pumps[me] = None
                if len(self._pumps) < self.limit:
                    self._fill()
        finally:
            cut = self._pumps.pop(me)
            if cut is not None:
                self._over(cut, NOT_RUN)
            self._fill()

    def _next(self) -> _Entry | None:
        while self._waiting and self._refused is None:
            entry = self._waiting.popleft()
            if not (entry.work.is_stopped or self.circuit.pause):
                return entry
            self._over(entry, NOT_RUN)
        return None

    async def _send(self, entry: _Entry) -> None:
        request = entry.line.request
        expected = 0
        if self._rates is not None:
            expected = estimate(request.body, request.endpoint)
            await self._rates.admit(expected)
            if self.circuit.pause:
                # It opened while this one waited.
                self._rates.settle(expected, None)
                self._over(entry, NOT_RUN)
                return
        entry.attempts += 1
        entry.is_sent = True
        self.circuit.sent()
        token, outcome = self._concurrency.started(), None
        try:
            outcome = await self.backend.send(request)
        except Exception as error:
            # A bug of ours: the line fails, its neighbours go on.
            logger.error("line.crashed", request_id=request.request_id, **log.cause(error))
            self._over(entry, Exhausted(Retryable(f"an internal error ({type(error).__name__})"), attempts=1))
            return
        finally:
            self._concurrency.ended(token, _verdict(outcome))
            if self._rates is not None:
                self._rates.settle(expected, _used(outcome))
        if not isinstance(outcome, Retryable):
            self.circuit.succeeded()
            self._over(entry, outcome)
            return
        is_refused = outcome.is_overload and self.limit == 1
        if is_refused or not outcome.is_overload:
            # A backend that is busy gets fewer; one that is too busy for one at a time is as good as broken.
            self.circuit.failed()
        entry.failed += outcome.is_failed_attempt
        if entry.failed >= settings().max_attempts:
            self._over(entry, Exhausted(outcome, entry.failed))
        elif entry.work.is_stopped:
            self._over(entry, NOT_RUN)
        else:
            if is_refused:
                self._refused = entry
            pause = pause_before_retry(outcome, entry.attempts)
            self._pausing[entry] = asyncio.get_running_loop().call_later(pause, self._again, entry)

    def _again(self, entry: _Entry) -> None:
        del self._pausing[entry]
        entry.is_sent = False
        # It came before all that wait.
        self._waiting.appendleft(entry)
        self._goes_on(entry)
        self._fill()

    def _goes_on(self, entry: _Entry) -> None:
        if self._refused is entry:
            self._refused = None

    def _over(self, entry: _Entry, outcome: Ended | NotRun) -> None:
        self.unfinished -= 1
        entry.work.over(entry.line, outcome)
        if self._was_full and self.room:
            self._was_full = False
            self._on_room()


def _share(ceiling: int, workers: int) -> int:
    # More workers than requests: each may send one all the same.
    return max(1, ceiling // workers)


def _verdict(outcome: Outcome | None) -> Verdict:
    if isinstance(outcome, Answered | Refused):
        return Verdict.GOOD
    return Verdict.BUSY if outcome is not None and (outcome.is_overload or outcome.is_timeout) else Verdict.BROKEN


def _used(outcome: Outcome | None) -> int | None:
    """Tokens; None where there was no answer."""
    return outcome.usage.input_tokens + outcome.usage.output_tokens if isinstance(outcome, Answered) else None


def pause_before_retry(outcome: Retryable, attempt: int) -> float:
    """Seconds: what the backend asked for (capped), and full jitter over a doubling ceiling on top."""
    ceiling = min(settings().retry_cap, settings().retry_base * 2.0 ** min(attempt - 1, 30))
    asked = min(outcome.retry_after or 0.0, settings().retry_after_cap)
    return asked + random.uniform(0, ceiling)

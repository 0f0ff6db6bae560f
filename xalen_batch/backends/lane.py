"""One backend as one worker process uses it: bounded, patient, and left alone while it is broken."""

import asyncio
import itertools
import random
import time
from dataclasses import dataclass

from xalen_batch import log
from xalen_batch.backends.contract import Answered, Backend, Refused, Request, Retryable
from xalen_batch.config import settings

logger = log.get(__name__)

# Retries may be a fifth of all requests, plus a start-up allowance; beyond that they feed an outage.
RETRY_SHARE = 0.2
RETRY_ALLOWANCE = 100.0


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The line used up its attempts; `last` is what the last one met."""

    last: Retryable
    attempts: int


@dataclass(frozen=True, slots=True)
class NotRun:
    """The line has no outcome and goes back to its task: its run was stopped, or the backend is broken."""


LineOutcome = Answered | Refused | Exhausted | NotRun


class Circuit:
    """Opens when a backend fails many times in a row, or when retries outgrow their budget.

    While it is open, lines go back unrun instead of burning their attempts. After the pause, work
    flows again; the first failures open it again at once.
    """

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._failures = 0
        self._budget = RETRY_ALLOWANCE
        self._open_until = 0.0

    @property
    def pause(self) -> float:
        """Seconds until the backend may be tried again; 0 when it may be now."""
        return max(0.0, self._open_until - time.monotonic())

    def sent(self) -> None:
        self._budget = min(RETRY_ALLOWANCE, self._budget + RETRY_SHARE)

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        self._budget -= 1
        if (self._failures >= settings().circuit_failures or self._budget < 0) and not self.pause:
            self._open_until = time.monotonic() + settings().circuit_pause
            # Half open afterwards: a single failure more is enough.
            self._failures = settings().circuit_failures - 1
            self._budget = max(self._budget, 0)
            logger.warning("backend.circuit_opened", backend=self._name, pause=settings().circuit_pause)


class Lane:
    """Made and used on the event loop; `unfinished` and `has_room` may be read from any thread."""

    def __init__(self, backend: Backend, limit: int, name: str = "") -> None:
        self.backend = backend
        self.limit = limit
        self.circuit = Circuit(name)
        self.unfinished = 0
        # FIFO: the lines of the task that was claimed first are sent first.
        self._slots = asyncio.Semaphore(limit)

    @property
    def has_room(self) -> bool:
        """Whether another task should be claimed for this backend.

        A full limit's worth of lines waits behind those in flight, so that the pipe stays full
        while a new task is claimed, and not more, so that later claims can still be fair.
        """
        return self.unfinished < 2 * self.limit and not self.circuit.pause

    def left(self, _: object) -> None:
        """A line that was counted as unfinished is over, however it ended."""
        self.unfinished -= 1

    async def run(self, request: Request, stopped: asyncio.Event) -> LineOutcome:
        """Run one line to its outcome. Sets no deadline of its own: `stopped` ends it between attempts."""
        failed = 0
        for attempt in itertools.count(1):
            async with self._slots:
                if stopped.is_set() or self.circuit.pause:
                    return NotRun()
                self.circuit.sent()
                outcome = await self.backend.send(request)
            if not isinstance(outcome, Retryable):
                self.circuit.succeeded()
                return outcome
            self.circuit.failed()
            failed += outcome.is_failed_attempt
            if failed >= settings().max_attempts:
                return Exhausted(outcome, failed)
            await _pause(pause_before_retry(outcome, attempt), stopped)
        raise AssertionError("attempts do not end by themselves")


def pause_before_retry(outcome: Retryable, attempt: int) -> float:
    """Seconds: what the backend asked for (capped), and full jitter over a doubling ceiling on top."""
    ceiling = min(settings().retry_cap, settings().retry_base * 2.0 ** min(attempt - 1, 30))
    asked = min(outcome.retry_after or 0.0, settings().retry_after_cap)
    return asked + random.uniform(0, ceiling)


async def _pause(seconds: float, stopped: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stopped.wait()
    except TimeoutError:
        return

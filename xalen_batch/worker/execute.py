"""Execute: send a claimed task's lines through their lane, and record outcomes as they come.

The slot's thread does the database work, the event loop only sends requests; no transaction is open
while a model answers.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from xalen_batch import db, log, memory
from xalen_batch.backends.contract import Answered, Ended, NotRun, Refused
from xalen_batch.config import MiB, settings
from xalen_batch.pipeline import record
from xalen_batch.pipeline.claim import Claim, ClaimedLine
from xalen_batch.pipeline.record import Recorded, Row
from xalen_batch.states import TaskState
from xalen_batch.worker.circuit_breaker import Source
from xalen_batch.worker.lane import Lane

logger = log.get(__name__)

# A flush records answers until it passes this many bytes.
FLUSH_BYTES = 16 * MiB
# After a flush of this many bytes of answers their pages go back to the system.
TRIMMED_BYTES = 4 * MiB
LARGE_ANSWER = 1 * MiB
_large_flushes = threading.BoundedSemaphore(2)
# A task that records nothing still extends its lease, and looks whether its batch goes on, this
# often at least.
HEARTBEAT = 2.0
DATABASE_RETRY = 1.0

# Line number, custom id, outcome.
Outcomes = list[tuple[int, str, Ended]]


class Run:
    """One claimed task on its way: what the event loop, which adds outcomes, and the slot's thread,
    which takes them, share.
    """

    def __init__(self, claim: Claim, lane: Lane) -> None:
        # A line is let go of when it is over, and not when all are.
        self.claim = replace(claim, lines=())
        self.count = len(claim.lines)
        self.source = Source.of(claim.account_id, claim.batch_id)
        self.lane = lane
        self.is_stopped = False
        # Bytes of requests that are not over.
        self.waiting = sum(len(line.request.body) for line in claim.lines)
        self._lines = claim.lines
        self._left = self.count
        self._outcomes: Outcomes = []
        # Bytes of answers, each written by one side only: of those that came, and of those that
        # were taken.
        self._came = self._taken = 0
        # Bytes of those that were taken last.
        self.taken_size = 0
        # Bytes of answers that the lane's buffer counts for this run; on the event loop.
        self._unrecorded = 0
        self._is_left = False
        self._most_lines, self._longest_wait = settings().flush_lines, settings().flush_interval
        # A thread that is woken for each line costs more than the line.
        self._is_due = threading.Event()
        self._closing: asyncio.TimerHandle | None = None

    @property
    def is_over(self) -> bool:
        """Whether every line has come back, and what they came back with has been taken."""
        return not self._left and not self._outcomes

    def start(self) -> None:
        """Send every line; on the event loop.

        Those not started when the batch's window closes are not run.
        """
        if self.claim.closes_at is not None:
            open_for = self.claim.closes_at - time.monotonic()
            self._closing = asyncio.get_running_loop().call_later(open_for, self.stop)
            self.is_stopped = open_for <= 0
        lines, self._lines = self._lines, ()
        self.lane.add(self, lines)

    def stop(self) -> None:
        """Start no line any more; on the event loop."""
        self.is_stopped = True
        self.lane.stop(self)

    def cut(self) -> None:
        """Give up on what is in flight as well; on the event loop."""
        self.stop()
        self.lane.cut(self)

    def leave(self) -> None:
        """Nobody takes outcomes any more; on the event loop."""
        self.recorded(self._unrecorded)
        self._is_left = True
        self.cut()

    def over(self, line: ClaimedLine, outcome: Ended | NotRun) -> None:
        """A line has come back; on the event loop."""
        if not isinstance(outcome, NotRun) and not self._is_left:
            size = _size(outcome)
            self._outcomes.append((line.line_no, line.custom_id, outcome))
            self._came += size
            self._unrecorded += size
            self.lane.buffer.answered(size)
        self.waiting -= len(line.request.body)
        # Behind the outcome: who sees that none is left finds it there.
        self._left -= 1
        if not self._left and self._closing is not None:
            self._closing.cancel()
        if not self._left or self._is_flush or self.lane.buffer.is_full:
            self._is_due.set()

    def recorded(self, size: int) -> None:
        """So many bytes of answers have left the memory; on the event loop."""
        self._unrecorded -= size
        self.lane.buffer.recorded(size)

    def take(self) -> Outcomes:
        """On the slot's thread: at most a flush's worth of outcomes, after waiting for that much,
        or for the flush interval.
        """
        if self._left:
            self._is_due.wait(self._longest_wait)
        self._is_due.clear()
        taken: Outcomes = []
        size = 0
        for outcome in self._outcomes[: self._most_lines]:
            taken.append(outcome)
            size += _size(outcome[2])
            if size >= FLUSH_BYTES:
                break
        # What the loop adds meanwhile is behind these.
        del self._outcomes[: len(taken)]
        self._taken += size
        self.taken_size = size
        if self._is_flush:
            self._is_due.set()
        return taken

    @property
    def _is_flush(self) -> bool:
        return len(self._outcomes) >= self._most_lines or self._came - self._taken >= FLUSH_BYTES


def _turn(size: int, rows: Sequence[Row]) -> AbstractContextManager[object]:
    """A row is copied whole on its way into the database; slots with large ones wait for each
    other.
    """
    return (
        _large_flushes
        if size >= LARGE_ANSWER
        and any(row.body is not None and len(row.body) >= LARGE_ANSWER for row in rows)
        else nullcontext()
    )


def _size(outcome: Ended) -> int:
    return len(outcome.body) if isinstance(outcome, Answered | Refused) else 0


def heartbeat() -> float:
    """Seconds; several in a lease, however short it is."""
    return min(HEARTBEAT, settings().lease / 4)


class Slot:
    """Follows one run from its thread until the task has ended, is handed back, or belongs to
    someone else.

    `on_loop` has a function called on the event loop.
    """

    def __init__(
        self, run: Run, on_loop: Callable[..., object], *, seconds_left: Callable[[], float | None]
    ) -> None:
        self._run = run
        self._on_loop = on_loop
        self._seconds_left = seconds_left
        self._recorded = 0
        self._heartbeat_at = time.monotonic() + heartbeat()

    def follow(self, on_flush: Callable[[], None]) -> None:
        """Record outcomes until the run is over. `on_flush` is called after every flush.

        A stop (the worker's, the batch's, or that of its execution window) lets requests in flight
        finish: the worker's for its grace, then they are cut off.
        """
        while (size := self._record_next(on_flush)) is not None:
            if size:
                self._on_loop(self._run.recorded, size)
            if size >= TRIMMED_BYTES:
                memory.trim()
            left = self._seconds_left()
            if left is not None and left <= 0:
                self._on_loop(self._run.cut)

    def _record_next(self, on_flush: Callable[[], None]) -> int | None:
        """Wait for outcomes and record them; the bytes of their answers, which are not in memory
        after this. None: the run is over.
        """
        outcomes = self._run.take()
        if self._run.is_over:
            self._leave(self._rows(outcomes))
            return None
        if not outcomes and time.monotonic() < self._heartbeat_at:
            return 0
        recorded = self._flush(self._rows(outcomes), TaskState.RUNNING)
        if recorded.is_stale:
            return None
        if not recorded.goes_on:
            self._on_loop(self._run.stop)
        self._heartbeat_at = time.monotonic() + heartbeat()
        on_flush()
        return self._run.taken_size

    def _rows(self, outcomes: Outcomes) -> list[Row]:
        claim = self._run.claim
        return [
            record.row(
                record.LineRef(claim.batch_id, line_no, claim.model, custom_id),
                outcome,
                claim.tariff,
            )
            for line_no, custom_id, outcome in outcomes
        ]

    def _leave(self, rows: list[Row]) -> None:
        is_done = self._recorded + len(rows) == self._run.count
        pause = None if is_done else self._run.lane.circuit.pause_of(self._run.source)
        self._flush(rows, TaskState.DONE if is_done else TaskState.PENDING, pause=pause)

    def _blame(self, to: TaskState) -> int:
        # A suspect that is handed back has not taken this worker down.
        return -1 if self._run.claim.is_suspect and to is TaskState.PENDING else 0

    def _flush(self, rows: list[Row], to: TaskState, pause: float | None = None) -> Recorded:
        claim = self._run.claim
        is_retry = False
        while True:
            try:
                if is_retry and rows and record.is_recorded(rows[0]):
                    recorded = Recorded(is_stale=to is not TaskState.RUNNING, goes_on=True)
                else:
                    with _turn(self._run.taken_size, rows):
                        recorded = record.record(
                            claim.key,
                            claim.fence,
                            rows,
                            to=to,
                            pause=pause,
                            crashes=self._blame(to),
                        )
                break
            except db.UNAVAILABLE as error:
                # The outcomes are paid for: hold them until the database is back. If that takes
                # longer than the lease, the fence refuses them.
                left = self._seconds_left()
                if left is not None and left <= 0:
                    raise
                logger.warning(
                    db.trouble(error), during="record", batch_id=claim.batch_id, task=claim.key[1]
                )
                is_retry = True
                time.sleep(DATABASE_RETRY)
        if recorded.is_stale:
            logger.warning(
                "task.stale",
                batch_id=claim.batch_id,
                task=claim.key[1],
                fence=claim.fence,
                dropped=len(rows),
            )
        self._recorded += len(rows)
        return recorded

"""Execute: send a claimed task's lines through their lane, and record outcomes as they come.

The event loop thread sends requests; the slot's thread writes to the database. No transaction is
open while a model answers.
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
from xalen_batch.metrics import counted
from xalen_batch.models.line_attempts import Attempt
from xalen_batch.pipeline import record
from xalen_batch.pipeline.claim import Claim, ClaimedLine
from xalen_batch.pipeline.record import Recorded, Row
from xalen_batch.states import TaskState
from xalen_batch.worker.circuit_breaker import Source
from xalen_batch.worker.lane import Lane

logger = log.get(__name__)

# A flush takes outcomes until their answers pass this many bytes.
FLUSH_BYTES = 16 * MiB
# After a flush of this many bytes, the allocator's free pages are returned to the kernel.
TRIMMED_BYTES = 4 * MiB
# The driver copies a row whole, so only two slots at a time flush answers of this many bytes.
LARGE_ANSWER = 1 * MiB
_large_flushes = threading.BoundedSemaphore(2)
# Most seconds until a task without outcomes extends its lease and reads its batch's status.
HEARTBEAT = 2.0
# Seconds before a flush that met an unavailable database is repeated.
DATABASE_RETRY = 1.0

# Line number, custom id, outcome.
Outcomes = list[tuple[int, str, Ended]]
# Failed attempts of a run that are kept between two flushes; later ones are dropped.
MOST_ATTEMPTS = 1_000


class TaskRun:
    """One claimed task while it runs: the state that two threads share.

    The event loop thread sends its lines and adds outcomes; the slot's thread takes them. Methods
    without a note are called on the event loop thread.
    """

    def __init__(self, claim: Claim, lane: Lane) -> None:
        # Without the lines: each is freed when it has ended, not when all have.
        self.claim = replace(claim, lines=())
        self.count = len(claim.lines)
        self.source = Source.of(claim.account_id, claim.batch_id)
        self.lane = lane
        self.is_stopped = False
        # Bytes of the requests of lines that have not ended.
        self.request_bytes = sum(len(line.request.body) for line in claim.lines)
        self._lines = claim.lines
        self._left = self.count
        self._outcomes: Outcomes = []
        # By line number; as of the outcomes, the event loop thread only appends.
        self._attempts: list[tuple[int, Attempt]] = []
        # Bytes of answers since the start. The first is written by the event loop thread only, the
        # second by the slot's thread only, so neither needs a lock.
        self._arrived_bytes = self._taken_bytes = 0
        # Bytes of answers that the last `take` returned.
        self.last_taken_bytes = 0
        # Bytes of answers that the lane's buffer counts for this run.
        self._unrecorded = 0
        self._is_left = False
        self._most_lines, self._longest_wait = settings().flush_lines, settings().flush_interval
        # Set once per flush: waking the slot's thread for each line would cost more than the line.
        self._is_due = threading.Event()
        self._closing: asyncio.TimerHandle | None = None

    @property
    def is_over(self) -> bool:
        """Whether every line has ended or was returned, and all outcomes are taken; any thread."""
        return not self._left and not self._outcomes

    def start(self) -> None:
        """Send every line that starts before the batch's execution window closes."""
        if self.claim.closes_at is not None:
            open_for = self.claim.closes_at - time.monotonic()
            self._closing = asyncio.get_running_loop().call_later(open_for, self.stop)
            self.is_stopped = open_for <= 0
        lines, self._lines = self._lines, ()
        self.lane.add(self, lines)

    def stop(self) -> None:
        """Start no further line."""
        self.is_stopped = True
        self.lane.stop(self)

    def cut(self) -> None:
        """Start no further line, and cancel the requests in flight."""
        self.stop()
        self.lane.cut(self)

    def leave(self) -> None:
        """Drop all further outcomes, as the slot has left the run."""
        self.recorded(self._unrecorded)
        self._is_left = True
        self.cut()

    def over(self, line: ClaimedLine, outcome: Ended | NotRun) -> None:
        """A line has ended (`outcome`) or is returned unrun (NotRun)."""
        if not isinstance(outcome, NotRun) and not self._is_left:
            size = _size(outcome)
            self._outcomes.append((line.line_no, line.custom_id, outcome))
            self._arrived_bytes += size
            self._unrecorded += size
            self.lane.buffer.answered(size)
        self.request_bytes -= len(line.request.body)
        # After the outcome is added: the slot's thread reads `_left` first.
        self._left -= 1
        if not self._left and self._closing is not None:
            self._closing.cancel()
        if not self._left or self._is_flush or self.lane.buffer.is_full:
            self._is_due.set()

    def attempt_failed(self, line: ClaimedLine, attempt: Attempt) -> None:
        """A request for a line brought no answer."""
        if len(self._attempts) < MOST_ATTEMPTS:
            self._attempts.append((line.line_no, attempt))

    def recorded(self, size: int) -> None:
        """Release `size` bytes of answers from the buffer, as they are recorded."""
        self._unrecorded -= size
        self.lane.buffer.recorded(size)

    def take(self) -> Outcomes:
        """On the slot's thread: wait for outcomes, and return at most one flush of them.

        Waits until a flush is full, all lines have ended, or `flush_interval` seconds have passed.
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
        # The event loop thread only appends, so the first ones are still those taken.
        del self._outcomes[: len(taken)]
        self._taken_bytes += size
        self.last_taken_bytes = size
        if self._is_flush:
            self._is_due.set()
        return taken

    def take_attempts(self) -> list[tuple[int, Attempt]]:
        """On the slot's thread: the failed attempts since the last call, also of taken outcomes."""
        taken = self._attempts[:]
        del self._attempts[: len(taken)]
        return taken

    @property
    def _is_flush(self) -> bool:
        return (
            len(self._outcomes) >= self._most_lines
            or self._arrived_bytes - self._taken_bytes >= FLUSH_BYTES
        )


def _turn(size: int, rows: Sequence[Row]) -> AbstractContextManager[object]:
    """The semaphore that a flush of `size` bytes has to hold, if a row is large."""
    if size < LARGE_ANSWER:
        return nullcontext()
    is_large = any(row.body is not None and len(row.body) >= LARGE_ANSWER for row in rows)
    return _large_flushes if is_large else nullcontext()


def _size(outcome: Ended) -> int:
    return len(outcome.body) if isinstance(outcome, Answered | Refused) else 0


def _count(claim: Claim, rows: Sequence[Row]) -> None:
    labels = claim.model, counted.mode(claim.lane_key[1])
    charges = [row.amount for row in rows if row.amount is not None]
    counted.LINES.labels(*labels, "completed").inc(len(charges))
    counted.LINES.labels(*labels, "failed").inc(len(rows) - len(charges))
    counted.CHARGED.labels(*labels).inc(sum(map(float, charges)))


def heartbeat() -> float:
    """Seconds between two extensions of a lease: several in each lease."""
    return min(HEARTBEAT, settings().lease / 4)


class Slot:
    """Records the outcomes of one run; the slot's thread only.

    `on_loop` calls a function on the event loop thread.
    """

    def __init__(
        self,
        run: TaskRun,
        on_loop: Callable[..., object],
        *,
        seconds_left: Callable[[], float | None],
    ) -> None:
        self._run = run
        self._on_loop = on_loop
        self._seconds_left = seconds_left
        self._recorded = 0
        self._heartbeat_at = time.monotonic() + heartbeat()

    def follow(self, on_flush: Callable[[], None]) -> None:
        """Record outcomes until the task has ended, is returned, or has another owner.

        `on_flush` is called after every flush. When the worker, the batch or its execution window
        stops the run, requests in flight may finish; the worker's stop cancels them after its
        grace.
        """
        size = self._record_next(on_flush)
        while size is not None:
            if size:
                self._on_loop(self._run.recorded, size)
            if size >= TRIMMED_BYTES:
                memory.trim()
            left = self._seconds_left()
            if left is not None and left <= 0:
                self._on_loop(self._run.cut)
            size = self._record_next(on_flush)

    def _record_next(self, on_flush: Callable[[], None]) -> int | None:
        """Wait for outcomes and record them. None: the run is over.

        Returns the bytes of their answers. No reference to them is left, so the memory is free.
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
        return self._run.last_taken_bytes

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

    def _crashes(self, to: TaskState) -> int:
        # A crash is counted before a suspect runs. A suspect that is returned did not cause one.
        return -1 if self._run.claim.is_suspect and to is TaskState.PENDING else 0

    def _flush(self, rows: list[Row], to: TaskState, pause: float | None = None) -> Recorded:
        claim = self._run.claim
        attempts = self._run.take_attempts()
        is_retry = False
        while True:
            try:
                if is_retry and rows and record.is_recorded(rows[0]):
                    recorded = Recorded(is_stale=to is not TaskState.RUNNING, goes_on=True)
                else:
                    with _turn(self._run.last_taken_bytes, rows):
                        recorded = record.record(
                            claim.key,
                            claim.fence,
                            rows,
                            to=to,
                            pause=pause,
                            crashes=self._crashes(to),
                            attempts=attempts,
                        )
                break
            except db.UNAVAILABLE as error:
                # The outcomes are paid for: keep them until the database is back. If the lease ends
                # first, the fence refuses them.
                left = self._seconds_left()
                if left is not None and left <= 0:
                    raise
                logger.warning(
                    db.trouble(error), during="record", batch_id=claim.batch_id, task=claim.key[1]
                )
                is_retry = True
                time.sleep(DATABASE_RETRY)
        if recorded.is_stale:
            counted.STALE_WRITES.inc()
            logger.warning(
                "task.stale",
                batch_id=claim.batch_id,
                task=claim.key[1],
                fence=claim.fence,
                dropped=len(rows),
            )
        else:
            _count(claim, rows)
        self._recorded += len(rows)
        return recorded

"""Execute: send a claimed task's lines through their lane, and record outcomes as they come.

The slot's thread does the database work, the event loop only sends requests; no transaction is open
while a model answers.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from xalen_batch import db, log
from xalen_batch.backends.circuit import Source
from xalen_batch.backends.contract import Answered, Refused
from xalen_batch.backends.lane import Lane
from xalen_batch.backends.work import Ended, NotRun
from xalen_batch.config import MiB, settings
from xalen_batch.pipeline import record
from xalen_batch.pipeline.claim import Claim, Line
from xalen_batch.pipeline.record import Recorded, Row
from xalen_batch.states import TaskState

logger = log.get(__name__)

FLUSH_BYTES = 4 * MiB
# A task that records nothing still extends its lease, and looks whether its batch goes on, this often at least.
HEARTBEAT = 2.0
DATABASE_RETRY = 1.0

# Line number, custom id, outcome.
Outcomes = list[tuple[int, str, Ended]]


class Run:
    """One claimed task on its way: what the event loop, which adds outcomes, and the slot's thread, which takes them, share."""

    def __init__(self, claim: Claim, lane: Lane) -> None:
        # A line is let go of when it is over, and not when all are.
        self.claim = replace(claim, lines=())
        self.count = len(claim.lines)
        self.source = Source(claim.account_id, claim.batch_id)
        self.lane = lane
        self.is_stopped = False
        self._lines = claim.lines
        self._left = self.count
        self._outcomes: Outcomes = []
        # Bytes, each written by one side only: of requests that are not over; of answers that came; of those that were taken.
        self._waiting = sum(len(line.request.body) for line in claim.lines)
        self._came = self._taken = 0
        self._most_lines, self._longest_wait = settings().flush_lines, settings().flush_interval
        # A thread that is woken for each line costs more than the line.
        self._is_due = threading.Event()
        self._closing: asyncio.TimerHandle | None = None

    @property
    def is_over(self) -> bool:
        """Whether every line has come back. What they came back with may still wait to be taken."""
        return not self._left

    @property
    def size(self) -> int:
        """Bytes of requests and answers that are held for it now."""
        return self._waiting + self._came - self._taken

    def start(self) -> None:
        """Send every line; on the event loop. Those not started when the batch's window closes are not run."""
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

    def over(self, line: Line, outcome: Ended | NotRun) -> None:
        """A line has come back; on the event loop."""
        if not isinstance(outcome, NotRun):
            self._outcomes.append((line.line_no, line.custom_id, outcome))
            self._came += _size(outcome)
        self._waiting -= len(line.request.body)
        self._left -= 1
        if not self._left and self._closing is not None:
            self._closing.cancel()
        if not self._left or len(self._outcomes) >= self._most_lines or self._came - self._taken >= FLUSH_BYTES:
            self._is_due.set()

    def take(self) -> Outcomes:
        """On the slot's thread: the outcomes since the last time, after waiting for a flush's worth, or for the flush interval."""
        if not self.is_over:
            self._is_due.wait(self._longest_wait)
        self._is_due.clear()
        count = len(self._outcomes)
        taken = self._outcomes[:count]
        # What the loop adds meanwhile is behind these.
        del self._outcomes[:count]
        self._taken += sum(_size(outcome) for _, _, outcome in taken)
        return taken


def _size(outcome: Ended) -> int:
    return len(outcome.body) if isinstance(outcome, Answered | Refused) else 0


def heartbeat() -> float:
    """Seconds; several in a lease, however short it is."""
    return min(HEARTBEAT, settings().lease / 4)


class Slot:
    """Follows one run from its thread until the task has ended, is handed back, or belongs to someone else."""

    def __init__(
        self, run: Run, *, stop: Callable[[], object], cut: Callable[[], object], seconds_left: Callable[[], float | None]
    ) -> None:
        self._run = run
        self._stop = stop
        self._cut = cut
        self._seconds_left = seconds_left
        self._recorded = 0

    def follow(self, on_flush: Callable[[], None]) -> None:
        """Record outcomes until the run is over. `on_flush` is called after every flush.

        A stop (the worker's, the batch's, or that of its execution window) lets requests in flight
        finish: the worker's for its grace, then they are cut off.
        """
        due = time.monotonic() + heartbeat()
        while True:
            outcomes = self._run.take()
            if self._run.is_over:
                self._leave(self._rows(outcomes + self._run.take()))
                return
            rows = self._rows(outcomes)
            left = self._seconds_left()
            if left is not None and left <= 0:
                self._cut()
            if not rows and time.monotonic() < due:
                continue
            recorded = self._flush(rows, TaskState.RUNNING)
            if recorded.is_stale:
                return
            if not recorded.goes_on:
                self._stop()
            due = time.monotonic() + heartbeat()
            on_flush()

    def _rows(self, outcomes: Outcomes) -> list[Row]:
        claim = self._run.claim
        return [
            record.row(record.Line(claim.batch_id, line_no, claim.model, custom_id), outcome, claim.tariff)
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
                    recorded = record.record(claim.key, claim.fence, rows, to=to, pause=pause, blame=self._blame(to))
                break
            except db.AWAY:
                # The outcomes are paid for: hold them until the database is back. If that takes longer
                # than the lease, the fence refuses them.
                left = self._seconds_left()
                if left is not None and left <= 0:
                    raise
                logger.warning("database.unreachable", during="record", batch_id=claim.batch_id.hex, task=claim.key[1])
                is_retry = True
                time.sleep(DATABASE_RETRY)
        if recorded.is_stale:
            logger.warning("task.stale", batch_id=claim.batch_id.hex, task=claim.key[1], fence=claim.fence, dropped=len(rows))
        self._recorded += len(rows)
        return recorded

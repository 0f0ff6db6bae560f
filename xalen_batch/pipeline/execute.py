"""Execute: send a claimed task's lines on the event loop, and record outcomes as they come.

The slot's thread does the database work, the loop only sends requests; no transaction is open
while a model answers.
"""

import asyncio
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from xalen_batch import db, log
from xalen_batch.backends.contract import Answered, Retryable
from xalen_batch.backends.lane import Exhausted, Lane, NotRun
from xalen_batch.config import MiB, settings
from xalen_batch.pipeline import record
from xalen_batch.pipeline.claim import Claim, Line
from xalen_batch.pipeline.record import Ended, Recorded, Row
from xalen_batch.states import TaskState

logger = log.get(__name__)

FLUSH_BYTES = 4 * MiB
# A task that records nothing still extends its lease, and looks whether its batch goes on, this often.
HEARTBEAT = 2.0
DATABASE_RETRY = 1.0


@dataclass(eq=False)
class Run:
    """One claimed task on its way: what the slot's thread and the event loop share."""

    claim: Claim
    lane: Lane
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    # None comes last.
    outcomes: "queue.SimpleQueue[tuple[Line, Ended] | None]" = field(default_factory=queue.SimpleQueue)

    async def fan_out(self) -> None:
        """Send every line through the lane; on the event loop. Those not started when the batch's window closes are not run."""
        closing = self._stop_at_closing()
        try:
            async with asyncio.TaskGroup() as group:
                for line in self.claim.lines:
                    group.create_task(self._send(line)).add_done_callback(self.lane.left)
        finally:
            if closing is not None:
                closing.cancel()
            self.outcomes.put(None)

    def _stop_at_closing(self) -> asyncio.TimerHandle | None:
        if self.claim.closes_at is None:
            return None
        # If that is now or was, it is before the first line's turn.
        return asyncio.get_running_loop().call_later(self.claim.closes_at - time.monotonic(), self.stopped.set)

    async def _send(self, line: Line) -> None:
        try:
            outcome = await self.lane.run(line.request, self.stopped)
        except Exception as error:
            # A bug of ours: the line fails, its neighbours go on.
            logger.error("line.crashed", batch_id=self.claim.batch_id.hex, line=line.line_no, **log.cause(error))
            outcome = Exhausted(Retryable(f"an internal error ({type(error).__name__})"), attempts=1)
        if not isinstance(outcome, NotRun):
            self.outcomes.put((line, outcome))


class Slot:
    """Follows one run from its thread until the task has ended, is handed back, or belongs to someone else."""

    def __init__(self, run: Run, fan_out: "Future[None]", *, stop: Callable[[], None], seconds_left: Callable[[], float | None]) -> None:
        self._run = run
        self._fan_out = fan_out
        self._stop = stop
        self._seconds_left = seconds_left
        self._rows: list[Row] = []
        self._bytes = 0
        self._recorded = 0

    def follow(self, on_flush: Callable[[], None]) -> None:
        """Record outcomes until the run is over. `on_flush` is called after every flush.

        A stop (the worker's, the batch's, or that of its execution window) lets requests in flight
        finish: the worker's for its grace, then they are cut off.
        """
        while self._receive():
            left = self._seconds_left()
            if left is not None and left <= 0:
                self._fan_out.cancel()
            recorded = self._flush(TaskState.RUNNING)
            if recorded.is_stale:
                return
            if not recorded.goes_on:
                self._stop()
            on_flush()
        self._leave()

    @property
    def _is_full(self) -> bool:
        return len(self._rows) >= settings().flush_lines or self._bytes >= FLUSH_BYTES

    def _receive(self) -> bool:
        """Take outcomes until a flush is due. False: the run is over."""
        due = time.monotonic() + HEARTBEAT
        while not self._is_full:
            try:
                item = self._run.outcomes.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                return True
            if item is None:
                return False
            if not self._rows:
                due = min(due, time.monotonic() + settings().flush_interval)
            self._take(*item)
        return True

    def _take(self, line: Line, outcome: Ended) -> None:
        claim = self._run.claim
        self._rows.append(record.row(record.Line(claim.batch_id, line.line_no, claim.model, line.custom_id), outcome, claim.tariff))
        self._bytes += len(outcome.body) if isinstance(outcome, Answered) else 0

    def _leave(self) -> None:
        is_done = self._recorded + len(self._rows) == len(self._run.claim.lines)
        self._flush(TaskState.DONE if is_done else TaskState.PENDING, pause=None if is_done else self._run.lane.circuit.pause)

    def _flush(self, to: TaskState, pause: float | None = None) -> Recorded:
        claim, rows = self._run.claim, self._rows
        is_retry = False
        while True:
            try:
                if is_retry and rows and record.is_recorded(rows[0]):
                    recorded = Recorded(is_stale=to is not TaskState.RUNNING, goes_on=True)
                else:
                    recorded = record.record(claim.key, claim.fence, rows, to=to, pause=pause)
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
        self._rows, self._bytes = [], 0
        return recorded

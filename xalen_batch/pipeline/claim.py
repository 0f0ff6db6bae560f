"""Claim: lease the fair next task, raise its fence, and read its lines from storage."""

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast
from uuid import UUID

from msgspec import Struct

from xalen_batch import db, jsonl, log, storage
from xalen_batch.backends.contract import Request
from xalen_batch.billing.charges import Tariff
from xalen_batch.config import settings
from xalen_batch.endpoints.names import Endpoint
from xalen_batch.ids import request_id
from xalen_batch.models import next_task, results
from xalen_batch.models.tasks import SUSPECT_CRASHES
from xalen_batch.pipeline import record
from xalen_batch.states import TaskState

logger = log.get(__name__)

LaneKey = tuple[str, bool]  # a model, and whether its lines are live

# Lines of the first claim for a backend that this process has not used yet: enough to fill a
# backend of any speed.
FIRST_LINES = 200
# Seconds until a task is claimable again after its lines could not be read.
STORAGE_PAUSE = 15.0


class Unreadable(Exception):
    """The lines of the claimed task could not be read, so the task was handed back."""


class ClaimedLine(Struct, frozen=True, gc=False):
    """One line of a claimed task, ready to be sent."""

    line_no: int
    custom_id: str
    request: Request


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that this process leases. No database session is open while its lines run.

    Made on a slot's thread, and read on the event loop thread.
    """

    key: tuple[UUID, int]
    fence: int
    account_id: UUID
    lane_key: LaneKey
    # "openai" or "simulated", as frozen in the batch; the catalog may have changed since.
    backend: str | None
    tariff: Tariff
    is_suspect: bool
    lines: tuple[ClaimedLine, ...]
    # Whether other tasks were pending at the claim, of any account and model.
    has_more: bool = True
    # When the batch's execution window closes, by `time.monotonic`; None: never.
    closes_at: float | None = None

    @property
    def batch_id(self) -> UUID:
        return self.key[0]

    @property
    def model(self) -> str:
        return self.lane_key[0]


def claim(rooms: Sequence[next_task.FreeCapacity], *, with_suspects: bool) -> Claim | None:
    """The fair next task, with at most the lines that the free capacity allows.

    Returns None if no task can be claimed. Raises Unreadable if the storage is unavailable.
    """
    # Read before the database reads its own clock, so this process never takes the execution window
    # for open after it has closed.
    now = time.monotonic()
    with db.autocommit() as session:
        task = next_task.claim(
            session,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            lease=settings().lease,
            rooms=rooms,
            room=FIRST_LINES,
            with_suspects=with_suspects,
        )
        if task is None:
            return None
        recorded: set[int] = set()
        # Only an earlier claim can have recorded some of the lines. Its fence is stale by now, so
        # it records no more.
        if task.attempts > 1:
            line_nos = [span.line_no for span in jsonl.unpack(task.line_index)]
            recorded = results.recorded(session, task.batch_id, line_nos)
    spans = [span for span in jsonl.unpack(task.line_index) if span.line_no not in recorded]
    try:
        lines = tuple(_read(task, spans))
    except storage.UNAVAILABLE as error:
        # Handed back in good order, so this does not count as a worker crash.
        logger.warning(
            "storage.unreachable",
            during="claim",
            batch_id=task.batch_id,
            task=task.seq,
            error=type(error).__name__,
        )
        record.record(task.key, task.fence, [], to=TaskState.PENDING, pause=STORAGE_PAUSE)
        raise Unreadable from error
    return Claim(
        key=task.key,
        fence=task.fence,
        account_id=task.account_id,
        lane_key=(task.model, task.livemode),
        backend=task.backend,
        tariff=Tariff(task.price_snapshot[task.model], task.discount_rate),
        is_suspect=task.losses >= SUSPECT_CRASHES,
        lines=lines,
        has_more=task.has_more,
        closes_at=None if task.open_for is None else now + task.open_for,
    )


def _read(task: next_task.ClaimedTask, spans: list[jsonl.Span]) -> list[ClaimedLine]:
    endpoint = cast(Endpoint, task.endpoint)
    found = storage.ranges(
        storage.key(task.input_file_id), [s.offset for s in spans], [s.length for s in spans]
    )
    lines = []
    for span, raw in zip(spans, found, strict=True):
        line = jsonl.input_line(raw)
        lines.append(
            ClaimedLine(
                span.line_no,
                line.custom_id,
                Request(endpoint, bytes(line.body), request_id(task.batch_id, span.line_no)),
            )
        )
    return lines

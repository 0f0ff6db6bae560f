"""Claim: take the fair next task, with its fence, and read what its lines need."""

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
from xalen_batch.catalog import Endpoint
from xalen_batch.config import settings
from xalen_batch.ids import request_id
from xalen_batch.models import Batch, next_task, results
from xalen_batch.models.tasks import SUSPECT_LOSSES
from xalen_batch.pipeline import record
from xalen_batch.states import TaskState

logger = log.get(__name__)

Lane = tuple[str, bool]  # a model, and whether its lines are live

# Lines taken at first for a backend that this process has not used yet: enough to fill it, whatever
# its speed.
FIRST_ROOM = 200
# How long a task is left alone whose lines could not be read.
STORAGE_PAUSE = 15.0


class Unreadable(Exception):
    """The lines of the claimed task could not be read, and it was handed back."""


class Line(Struct, frozen=True, gc=False):
    """One line of a claimed task, ready to be sent."""

    line_no: int
    custom_id: str
    request: Request


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that this process holds until its lease ends.

    No session is open while it is worked on.
    """

    key: tuple[UUID, int]
    fence: int
    account_id: UUID
    lane: Lane
    # What its batch sends the lines to: "openai" or "simulated", whatever the catalog says by now.
    backend: str | None
    tariff: Tariff
    is_suspect: bool
    lines: tuple[Line, ...]
    # When the batch's execution window closes, on the clock of `time.monotonic`; None: never.
    closes_at: float | None = None

    @property
    def batch_id(self) -> UUID:
        return self.key[0]

    @property
    def model(self) -> str:
        return self.lane[0]


def claim(rooms: Sequence[next_task.Room], *, with_suspects: bool) -> Claim | None:
    """The fair next task, as many of its lines as there is room for here, in one transaction.

    None: nothing to do. Raises Unreadable.
    """
    with db.transaction() as session:
        # Looked at before the database looks at its own, so that the window closes here no later
        # than there.
        now = time.monotonic()
        found = next_task.claim(
            session,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            lease=settings().lease,
            rooms=rooms,
            room=FIRST_ROOM,
            with_suspects=with_suspects,
        )
        if found is None:
            return None
        task, open_for = found
        batch = session.get_one(Batch, task.batch_id)
        recorded: set[int] = set()
        # Only an earlier claim can have recorded some of the lines.
        if task.attempts > 1:
            line_nos = [span.line_no for span in jsonl.unpack(task.line_index)]
            recorded = results.recorded(session, batch.id, line_nos)
    spans = [span for span in jsonl.unpack(task.line_index) if span.line_no not in recorded]
    try:
        lines = tuple(_read(batch, spans))
    except storage.UNAVAILABLE as error:
        # No worker is lost by this, and no line is to blame.
        logger.warning(
            "storage.unreachable",
            during="claim",
            batch_id=batch.id,
            task=task.seq,
            error=type(error).__name__,
        )
        record.record(task.key, task.fence, [], to=TaskState.PENDING, pause=STORAGE_PAUSE)
        raise Unreadable from error
    return Claim(
        key=task.key,
        fence=task.fence,
        account_id=batch.account_id,
        lane=(task.model, batch.livemode),
        backend=batch.backend_of(task.model),
        tariff=Tariff(batch.price_snapshot[task.model], batch.discount_rate),
        is_suspect=task.losses >= SUSPECT_LOSSES,
        lines=lines,
        closes_at=None if open_for is None else now + open_for,
    )


def _read(batch: Batch, spans: list[jsonl.Span]) -> list[Line]:
    endpoint = cast(Endpoint, batch.endpoint)
    lines = []
    for span, raw in zip(
        spans,
        storage.ranges(
            storage.key(batch.input_file_id), [s.offset for s in spans], [s.length for s in spans]
        ),
        strict=True,
    ):
        line = jsonl.input_line(raw)
        lines.append(
            Line(
                span.line_no,
                line.custom_id,
                Request(endpoint, bytes(line.body), request_id(batch.id, span.line_no)),
            )
        )
    return lines

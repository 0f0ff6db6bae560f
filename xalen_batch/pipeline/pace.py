"""Pace: measure how fast batches in progress advance, and warn once of those that will be late.

A sweep visits the batches in progress by deadline, some at a time; its cost does not depend on the
batches that have ended (docs/decisions/0065).
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Row, Select, func, select, text, tuple_
from sqlalchemy.orm import Session

from xalen_batch import db, events, log
from xalen_batch.batches import batches, outlook
from xalen_batch.events import Happened
from xalen_batch.models import Batch, BatchPace, batch_paces
from xalen_batch.models.batch_paces import Measurement
from xalen_batch.models.events import EventType

logger = log.get(__name__)

# Least time between two measurements of a batch.
EVERY = timedelta(seconds=60)
BATCHES_AT_ONCE = 50
FORGOTTEN_AT_ONCE = 1_000


def walk() -> Iterator[None]:
    """Measure each batch in progress that was not measured within EVERY; then forget ended ones."""
    after: tuple[datetime, UUID] | None = None
    while True:
        with db.transaction() as session:
            found = session.execute(due(after)).all()
            if not found:
                break
            after = (found[-1][0].expires_at, found[-1][0].id)
            _measure(session, found)
        yield
    while True:
        with db.transaction() as session:
            gone = batch_paces.forget_ended(session, FORGOTTEN_AT_ONCE)
        if gone < FORGOTTEN_AT_ONCE:
            return
        yield


Found = Row[Batch, BatchPace | None, datetime]


def due(after: tuple[datetime, UUID] | None) -> Select[Batch, BatchPace | None, datetime]:
    """The next batches to measure by deadline, each with its last measurement, and the time."""
    position = tuple_(Batch.expires_at, Batch.id)
    found = (
        select(Batch, BatchPace, func.now())
        .outerjoin(BatchPace, BatchPace.batch_id == Batch.id)
        # A literal: only then can the planner use the partial index of open batches.
        .where(text("batches.status = 'in_progress'"), Batch.call.is_(None))
        .where(BatchPace.measured_at.is_(None) | (BatchPace.measured_at <= func.now() - EVERY))
        .order_by(*position)
        .limit(BATCHES_AT_ONCE)
    )
    return found if after is None else found.where(position > after)


def _measure(session: Session, found: Sequence[Found]) -> None:
    progress = batches.progress(session, [row[0] for row in found])
    measured = []
    for batch, pace, now in found:
        done, total = progress[batch.id].done, progress[batch.id].total
        rate = seconds = None
        if pace is not None:
            seconds = (now - pace.measured_at).total_seconds()
            rate = max(done - pace.done, 0) / seconds
            if not _was_open(batch, pace.measured_at):
                # What it did while its window was closed is no pace.
                rate, seconds = pace.lines_per_second, pace.seconds
        late = pace is not None and outlook.is_late(batch, now, total - done, rate)
        measured.append(Measurement(batch.id, done, rate, seconds, late))
    at_risk = set(batch_paces.measure(session, measured, every=EVERY))
    for batch, *_ in found:
        if batch.id in at_risk:
            events.record(session, batch, Happened(EventType.BATCH_AT_RISK, batch.id))
            logger.warning("batch.at_risk", batch_id=batch.id, expires_at=str(batch.expires_at))


def _was_open(batch: Batch, since: datetime) -> bool:
    """Whether the batch could run from `since` until now: it has no window, or that was open."""
    return batch.window_opens_at is None or batch.window_opens_at <= since

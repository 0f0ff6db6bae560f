"""Paces: how fast the lines of each batch in progress end, measured now and then."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ForeignKey, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from xalen_batch.models.base import Base


class BatchPace(Base):
    """The last measurement of a batch in progress; the row is deleted when the batch has ended.

    A table of its own: the measurements contend with no change of the batch, and are HOT updates.
    """

    __tablename__ = "batch_paces"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    batch_id: Mapped[UUID] = mapped_column(ForeignKey("batches.id"), primary_key=True)
    measured_at: Mapped[datetime]
    # Lines that had ended then.
    done: Mapped[int]
    # Over `seconds` before that; null until there are two measurements.
    lines_per_second: Mapped[float | None]
    seconds: Mapped[float | None]
    # Whether the batch would miss its deadline at this pace.
    is_late: Mapped[bool]
    # When two measurements in a row had found that for the first time.
    at_risk_at: Mapped[datetime | None]


class Measurement(NamedTuple):
    batch_id: UUID
    done: int
    lines_per_second: float | None
    seconds: float | None
    is_late: bool


_MEASURE = text("""
    INSERT INTO batch_paces (batch_id, measured_at, done, lines_per_second, seconds, is_late)
    SELECT batch_id, now(), done, lines_per_second, seconds, is_late FROM unnest(
        CAST(:batch_id AS uuid[]), CAST(:done AS bigint[]), CAST(:lines_per_second AS float[]),
        CAST(:seconds AS float[]), CAST(:is_late AS boolean[])
    ) AS measured (batch_id, done, lines_per_second, seconds, is_late)
    ORDER BY batch_id
    ON CONFLICT (batch_id) DO UPDATE SET measured_at = now(), done = excluded.done,
        lines_per_second = excluded.lines_per_second, seconds = excluded.seconds,
        is_late = excluded.is_late,
        at_risk_at = coalesce(
            batch_paces.at_risk_at,
            CASE WHEN batch_paces.is_late AND excluded.is_late THEN now() END
        )
    WHERE batch_paces.measured_at <= now() - CAST(:every AS interval)
    RETURNING batch_id, at_risk_at = now()
""")


def measure(session: Session, found: Sequence[Measurement], *, every: timedelta) -> list[UUID]:
    """Store measurements; those are left out whose batch was measured less than `every` ago.

    Returns the batches that are at risk from now on.
    """
    values = {name: [getattr(one, name) for one in found] for name in Measurement._fields}
    rows = session.execute(_MEASURE, values | {"every": every}).all()
    return [batch_id for batch_id, is_new in rows if is_new]


_FORGET = text("""
    DELETE FROM batch_paces WHERE batch_id IN (
        SELECT batch_id FROM batch_paces JOIN batches ON batches.id = batch_id
        WHERE status <> 'in_progress' LIMIT :most FOR UPDATE OF batch_paces SKIP LOCKED
    ) RETURNING batch_id
""")


def forget_ended(session: Session, most: int) -> int:
    """Delete the rows of at most `most` batches that are not in progress; returns their number."""
    return len(session.execute(_FORGET, {"most": most}).all())

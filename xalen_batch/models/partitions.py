"""Partitions of `results`: one for the batches of a day (UTC), by the time in their UUIDv7.

Only the owner of the table may make and drop partitions, so functions of migration 0018 do it, with
the owner's privileges. `drop_sealed_results` checks itself that no batch needs the rows.
"""

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

# Days of which the sweep makes partitions in advance.
AHEAD = 7

_MAKE = text("""
    SELECT create_results_day((now() AT TIME ZONE 'UTC')::date + days)
    FROM generate_series(0, CAST(:ahead AS integer)) AS each (days)
""")


def day(batch_id: UUID) -> date:
    """The day (UTC) of the partition of a batch."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=batch_id.int >> 80)).date()


def make_ahead(session: Session) -> None:
    """Make the partitions of today and the AHEAD days after it."""
    session.execute(_MAKE, {"ahead": AHEAD})


def make(session: Session, day: date) -> None:
    """Make the partition of a day, if it has none. Idempotent."""
    session.execute(text("SELECT create_results_day(:day)"), {"day": day})


def drop_sealed(session: Session, *, older_than: float) -> str | None:
    """Drop the oldest partition whose day ended at least `older_than` seconds ago, if all of its
    batches are sealed; the next such one if not. Returns its name, or None.
    """
    name: str | None = session.scalar(
        text("SELECT drop_sealed_results(now() - :age * interval '1 second')"), {"age": older_than}
    )
    return name

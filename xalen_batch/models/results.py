"""Results: one row per ended line, with what it costs. Insert-only."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import CheckConstraint, SmallInteger, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from xalen_batch.models.base import Base


class Result(Base):
    """The primary key is what makes a second charge for a line impossible.

    A line succeeded if and only if its status is 2xx; `amount` is then its exact net price at the
    batch's snapshot, and null otherwise. A line without any answer has an `error_code` and no
    status.
    """

    __tablename__ = "results"
    __table_args__ = (
        CheckConstraint(
            "(amount IS NOT NULL) = (status_code IS NOT NULL AND status_code < 300)",
            name="charged_iff_succeeded",
        ),
    )

    # No foreign key: its check of every row costs as much as writing it (decision 0022).
    batch_id: Mapped[UUID] = mapped_column(primary_key=True)
    line_no: Mapped[int] = mapped_column(primary_key=True)
    input_tokens: Mapped[int] = mapped_column(server_default="0")
    cached_tokens: Mapped[int] = mapped_column(server_default="0")
    output_tokens: Mapped[int] = mapped_column(server_default="0")
    reasoning_tokens: Mapped[int] = mapped_column(server_default="0")
    ended_at: Mapped[datetime] = mapped_column(server_default=func.now())
    status_code: Mapped[int | None] = mapped_column(SmallInteger)
    amount: Mapped[Decimal | None]
    model: Mapped[str]
    custom_id: Mapped[str]
    # Null, or reasons to check the charge (billing/charges.py): tokens counted by us, tokens that
    # have no price.
    flag: Mapped[str | None]
    # True: its output line escapes the line breaks in `custom_id` and `error_message`
    # (`jsonl.escaped`). Null where they have none, and in rows from before this column: their lines
    # keep the bytes that their file's size was announced with.
    is_escaped: Mapped[bool | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    # The backend's answer, with the billed usage in it (backends/usage.py): bytes, since \u0000 is
    # legal JSON that jsonb refuses.
    # Null once erased.
    body: Mapped[bytes | None]


def recorded(session: Session, batch_id: UUID, line_nos: Sequence[int]) -> set[int]:
    """The numbers among `line_nos` whose lines have a result."""
    return set(
        session.scalars(
            select(Result.line_no).where(Result.batch_id == batch_id, Result.line_no.in_(line_nos))
        )
    )

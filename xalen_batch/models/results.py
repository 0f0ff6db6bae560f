"""Results: one row for each ended line of a young batch, with its charge.

Rows are inserted once. The only update is the erasure of `body`, after the output file that shows
the answer was deleted (`erasure.py`). When all batches of a day are sealed, the partition with
their rows is dropped (`partitions.py`).
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import CheckConstraint, SmallInteger, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from xalen_batch.models.base import Base


class Result(Base):
    """The result of one line. The primary key makes a second charge for a line impossible.

    A line succeeded if and only if its status is 2xx. `amount` is then its exact net price in USD,
    by the batch's price snapshot; otherwise it is null. A line without an answer has an
    `error_code` and no status.
    """

    __tablename__ = "results"
    __table_args__ = (
        CheckConstraint(
            "(amount IS NOT NULL) = (status_code IS NOT NULL AND status_code < 300)",
            name="charged_iff_succeeded",
        ),
        {"postgresql_partition_by": "RANGE (batch_id)"},
    )

    # No foreign key: checking it costs as much as inserting the row (docs/decisions/0022).
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
    # Null, or reasons to check the charge (billing/charges.py): tokens that xalen-batch counted,
    # tokens that have no price.
    flag: Mapped[str | None]
    # True: the output line escapes line breaks in `custom_id` and `error_message`
    # (`jsonl.escaped`). Null if they have none, and in rows older than this column: their output
    # lines stay unescaped, since the size of their file is fixed.
    is_escaped: Mapped[bool | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    # The backend's answer as JSON, with the billed usage in it (backends/usage.py). Bytes, since
    # jsonb refuses \u0000, which is legal JSON. Null if there was no answer, or it was erased.
    body: Mapped[bytes | None]


def recorded(session: Session, batch_id: UUID, line_nos: Sequence[int]) -> set[int]:
    """The numbers among `line_nos` whose lines have a result."""
    return set(
        session.scalars(
            select(Result.line_no).where(Result.batch_id == batch_id, Result.line_no.in_(line_nos))
        )
    )

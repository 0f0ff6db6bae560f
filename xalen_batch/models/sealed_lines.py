"""Sealed lines: the usage and the charge of each line of a sealed batch, by column."""

from decimal import Decimal
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, ForeignKey, Numeric, SmallInteger, Text
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class SealedLines(Base):
    """Up to some thousand consecutive lines of a batch, in the order of their numbers.

    Each array has an element for each line, as in the columns of `results`. PostgreSQL compresses
    the arrays to about 5 bytes a line. Rows are inserted once and never change.
    """

    __tablename__ = "sealed_lines"

    batch_id: Mapped[UUID] = mapped_column(ForeignKey("batches.id"), primary_key=True)
    first_line: Mapped[int] = mapped_column(primary_key=True)
    lines: Mapped[int]
    # Null if the numbers have no gap.
    line_nos: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
    models: Mapped[list[str]] = mapped_column(ARRAY(Text))
    status_codes: Mapped[list[int | None]] = mapped_column(ARRAY(SmallInteger))
    error_codes: Mapped[list[str | None]] = mapped_column(ARRAY(Text))
    flags: Mapped[list[str | None]] = mapped_column(ARRAY(Text))
    input_tokens: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    cached_tokens: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    output_tokens: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    reasoning_tokens: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    # Null if each line that succeeded is charged its tokens by the batch's price snapshot, as it
    # should be: such amounts follow from the other columns.
    amounts: Mapped[list[Decimal | None] | None] = mapped_column(ARRAY(Numeric))

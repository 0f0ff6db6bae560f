"""Credit notes on the invoices of batches. A trigger refuses changes, but for `statement_id`."""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class CreditNote(Base):
    """An amount that is given back of what a batch was billed; a line of a later statement."""

    __tablename__ = "credit_notes"
    __table_args__ = (
        ForeignKeyConstraint(
            ["batch_id", "account_id", "livemode"],
            ["batches.id", "batches.account_id", "batches.livemode"],
        ),
        UniqueConstraint("batch_id", "key"),
        Index("ix_credit_notes_account_id_livemode_id", "account_id", "livemode", "id"),
        Index(
            "ix_credit_notes_account_id_livemode_created_at", "account_id", "livemode", "created_at"
        ),
        # For the statement that is due next.
        Index(
            "ix_credit_notes_open",
            "account_id",
            "livemode",
            "created_at",
            postgresql_where=text("statement_id IS NULL"),
        ),
        CheckConstraint("amount > 0", name="amount"),
        CheckConstraint("share > 0 AND share <= 1", name="share"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    livemode: Mapped[bool]
    batch_id: Mapped[UUID]
    # USD, exact.
    amount: Mapped[Decimal]
    # The share of the invoice's total that the amount was computed from, if it was.
    share: Mapped[Decimal | None]
    reason: Mapped[str]
    # Repeating a request with the same key makes no second credit note of the batch.
    key: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # The statement that it is on; null until that is issued. No foreign key: the transaction that
    # issues the statement writes it.
    statement_id: Mapped[UUID | None]

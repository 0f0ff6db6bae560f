"""Invoices, one per batch, and the monthly statements over them.

Immutable once issued (a trigger refuses changes).
"""

from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Date,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Numeric,
    UniqueConstraint,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from xalen_batch.models.base import Base


class Invoice(Base):
    """Either of a batch (exact, never rounded) or of an account's month (payable, rounded once)."""

    __tablename__ = "invoices"
    __table_args__ = (
        # Test mode never meets live money: the batch must have the invoice's own account and mode.
        ForeignKeyConstraint(
            ["batch_id", "account_id", "livemode"],
            ["batches.id", "batches.account_id", "batches.livemode"],
        ),
        ForeignKeyConstraint(
            ["schedule_id", "account_id", "livemode"],
            ["schedules.id", "schedules.account_id", "schedules.livemode"],
        ),
        UniqueConstraint("batch_id"),
        UniqueConstraint("account_id", "livemode", "month"),
        Index("ix_invoices_account_id_livemode_issued_at", "account_id", "livemode", "issued_at"),
        CheckConstraint("(batch_id IS NULL) <> (month IS NULL)", name="batch_or_month"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    livemode: Mapped[bool]
    batch_id: Mapped[UUID | None]
    # First day of a statement's month, UTC.
    month: Mapped[date | None] = mapped_column(Date)
    # The schedule that made the batch, by the name it had.
    schedule_id: Mapped[UUID | None]
    schedule_name: Mapped[str | None]
    currency: Mapped[str]
    total: Mapped[Decimal]
    issued_at: Mapped[datetime] = mapped_column(server_default=func.now())

    lines: Mapped[list["InvoiceLine"]] = relationship(
        foreign_keys="InvoiceLine.invoice_id",
        order_by="InvoiceLine.position",
        lazy="selectin",
        cascade="save-update, merge, expunge",
    )


class InvoiceLine(Base):
    """One line; the amounts of an invoice's lines sum to its total, exactly."""

    __tablename__ = "invoice_lines"
    __table_args__ = (
        CheckConstraint(
            "kind IN ('usage', 'discount', 'not_billed', 'batch', 'rounding')", name="kind"
        ),
    )

    invoice_id: Mapped[UUID] = mapped_column(ForeignKey("invoices.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    description: Mapped[str]
    model: Mapped[str | None]
    component: Mapped[str | None]
    # Tokens; requests of a not_billed line, unless its reason is that the tokens have no price.
    quantity: Mapped[Decimal | None] = mapped_column(Numeric)
    # USD per million tokens of a usage line; the rate of a discount line.
    unit_price: Mapped[Decimal | None]
    # Of a not_billed line: why. `usage_counted` on a usage line: its tokens were counted by us; on
    # a statement's line: some of its batch were.
    reason: Mapped[str | None]
    # What wrote the answers of a usage line: "openai", a model server, or "simulated". Null on
    # lines from before this column.
    answered_by: Mapped[str | None]
    # Of a statement's line: the batch invoice it stands for.
    source_invoice_id: Mapped[UUID | None] = mapped_column(ForeignKey("invoices.id"))
    amount: Mapped[Decimal]

"""Invoices of batches, and the monthly statements over them. A trigger refuses changes."""

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
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from xalen_batch.models.base import Base


class Invoice(Base):
    """The invoice of a batch (exact, not rounded), or an account's monthly statement (rounded)."""

    __tablename__ = "invoices"
    __table_args__ = (
        # The batch has the invoice's account and mode, so test mode never meets live money.
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
    # The schedule that created the batch, and its name at that time.
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
    """One line of an invoice. The amounts of its lines sum exactly to its total."""

    __tablename__ = "invoice_lines"
    __table_args__ = (
        CheckConstraint(
            "kind IN ('usage', 'discount', 'not_billed', 'batch', 'rounding')", name="kind"
        ),
        # An invoice is on one statement at most.
        Index(
            "ix_invoice_lines_source_invoice_id",
            "source_invoice_id",
            unique=True,
            postgresql_where=text("source_invoice_id IS NOT NULL"),
        ),
        # So is a credit note.
        Index(
            "ix_invoice_lines_source_credit_id",
            "source_credit_id",
            unique=True,
            postgresql_where=text("source_credit_id IS NOT NULL"),
        ),
    )

    invoice_id: Mapped[UUID] = mapped_column(ForeignKey("invoices.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    description: Mapped[str]
    model: Mapped[str | None]
    component: Mapped[str | None]
    # Tokens; on a not_billed line requests, unless its reason is `no_price`.
    quantity: Mapped[Decimal | None] = mapped_column(Numeric)
    # USD per million tokens on a usage line; the rate on a discount line.
    unit_price: Mapped[Decimal | None]
    # On a not_billed line: why. `usage_counted` on a usage line: xalen-batch counted its tokens; on
    # a statement's line: it counted some of the batch's tokens.
    reason: Mapped[str | None]
    # On a usage line, the kind of backend that answered: "openai" (a model server) or "simulated".
    # Null on lines older than this column.
    answered_by: Mapped[str | None]
    # On a statement's line: the batch invoice that it sums up. No foreign key: it took a third of
    # the time of issuing a statement, whose lines are made of invoices, which are never deleted.
    source_invoice_id: Mapped[UUID | None]
    # On a statement's line: the credit note that it shows. The kind of such a line is `batch`: a
    # version without credit notes sums it up with the others (docs/decisions/0077).
    source_credit_id: Mapped[UUID | None]
    amount: Mapped[Decimal]

"""Credit notes on statements: an account's next statement has those that are on none."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Numeric,
    Select,
    Text,
    Uuid,
    cast,
    func,
    insert,
    literal,
    null,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session

from xalen_batch import ids
from xalen_batch.models import CreditNote, Invoice, InvoiceLine


def of_month(month: Invoice) -> tuple[ColumnElement[bool], ...]:
    """The conditions on the credit notes that a month's statement will have.

    They belong to the month of their creation, or to the first month after the last statement: a
    version without credit notes may have issued a statement without them.
    """
    assert month.month is not None
    start = literal(
        datetime(month.month.year, month.month.month, 1, tzinfo=UTC), DateTime(timezone=True)
    )
    open_since = (
        select(func.timezone("UTC", func.max(Invoice.month) + func.make_interval(0, 1)))
        .where(
            Invoice.account_id == month.account_id,
            Invoice.livemode == month.livemode,
            Invoice.month < month.month,
        )
        .scalar_subquery()
    )
    return (
        CreditNote.account_id == month.account_id,
        CreditNote.livemode == month.livemode,
        CreditNote.statement_id.is_(None),
        # Computed by PostgreSQL, since Python's calendar ends with the year 9999.
        CreditNote.created_at < start + func.make_interval(0, 1),
        # greatest() ignores a null.
        func.greatest(CreditNote.created_at, open_since) >= start,
    )


def sum_of_month(session: Session, month: Invoice) -> Any:
    """The sum that the lines of a month's credit notes have: USD, negative or 0."""
    total = func.coalesce(func.sum(-CreditNote.amount), 0)
    return session.execute(select(total).where(*of_month(month))).scalar_one()


def lines(month: Invoice, after: Any = None) -> Select[Any]:
    """The lines of a month's credit notes, with the columns of `statements.batch_lines`.

    `after`: the time and the id of the last one read.
    """
    rows = (
        select(
            literal("batch").label("kind"),
            _description().label("description"),
            cast(null(), Uuid).label("source_invoice_id"),
            CreditNote.id.label("source_credit_id"),
            cast(null(), Text).label("reason"),
            cast(-CreditNote.amount, Numeric).label("amount"),
            CreditNote.created_at.label("issued_at"),
        )
        .where(*of_month(month))
        .order_by(CreditNote.created_at, CreditNote.id)
    )
    return (
        rows if after is None else rows.where(tuple_(CreditNote.created_at, CreditNote.id) > after)
    )


def insert_lines(session: Session, statement: Invoice, after: int) -> None:
    """Put the month's credit notes on its statement, behind the position `after`."""
    noted = lines(statement).subquery().c
    order = (noted.issued_at, noted.source_credit_id)
    columns = {
        "invoice_id": literal(statement.id),
        "position": after + func.row_number().over(order_by=order),
        "kind": noted.kind,
        "description": noted.description,
        "source_credit_id": noted.source_credit_id,
        "amount": noted.amount,
    }
    session.execute(insert(InvoiceLine).from_select(list(columns), select(*columns.values())))
    stated = select(InvoiceLine.source_credit_id).where(
        InvoiceLine.invoice_id == statement.id, InvoiceLine.position > after
    )
    session.execute(
        update(CreditNote)
        .where(CreditNote.id.in_(stated))
        .values(statement_id=statement.id)
        .execution_options(synchronize_session=False)
    )


def _description() -> ColumnElement[str]:
    def name(kind: ids.Kind, id: Any) -> ColumnElement[str]:
        return literal(ids.prefix(kind)) + func.replace(cast(id, Text), "-", "")

    return func.concat(
        "Credit note ",
        name("cn", CreditNote.id),
        " on ",
        name("batch", CreditNote.batch_id),
        ": ",
        CreditNote.reason,
    )

"""The statement of a month: what an account pays. It sums batch invoices and rounds once."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any
from uuid import UUID

from sqlalchemy import Date, cast, func, select, text
from sqlalchemy.orm import Session, aliased

from xalen_batch import ids, log, money
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Invoice, InvoiceLine

logger = log.get(__name__)

# Transactions that were open when the month ended have landed by then: they may last a minute.
GRACE = timedelta(hours=1)
ISSUE_LOCK = 7261959


def parse_month(month: str) -> date:
    """First day of `2026-11`. Raises InvalidRequest."""
    try:
        return datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        raise InvalidRequest(f"{month[:40]!r} is not a month. Write it as 2026-11.", param="month") from None


def statement(session: Session, *, account_id: UUID, livemode: bool, month: date) -> dict[str, Any]:
    """The issued statement of a month, or the draft of one; reads only.

    A month is UTC, and an invoice belongs to the month it was issued in.
    """
    issued = session.scalars(
        select(Invoice).where(Invoice.account_id == account_id, Invoice.livemode == livemode, Invoice.month == month)
    ).one_or_none()
    if issued is not None:
        return _render(account_id, livemode, month, issued.lines, issued)
    return _render(account_id, livemode, month, _lines(_invoices(session, account_id, livemode, month)), None)


def issue_due(session: Session) -> int:
    """Issue the statements of all months that are over, for every account and mode that has invoices in them. Returns how many."""
    if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": ISSUE_LOCK}):
        return 0
    stated = aliased(Invoice)
    month = cast(func.date_trunc("month", func.timezone("UTC", Invoice.issued_at)), Date)
    due = session.execute(
        select(Invoice.account_id, Invoice.livemode, month.label("month"))
        .where(Invoice.batch_id.is_not(None), month < func.date_trunc("month", func.timezone("UTC", func.now() - GRACE)))
        .where(
            ~select(stated.id)
            .where(stated.account_id == Invoice.account_id, stated.livemode == Invoice.livemode, stated.month == month)
            .exists()
        )
        .distinct()
    ).all()
    for account_id, livemode, over in due:
        _issue(session, account_id, livemode, over)
    return len(due)


def _issue(session: Session, account_id: UUID, livemode: bool, month: date) -> None:
    lines = _lines(_invoices(session, account_id, livemode, month))
    with localcontext(money.EXACT):
        total = sum((line.amount for line in lines), Decimal(0))
    session.add(
        Invoice(id=ids.new(), account_id=account_id, livemode=livemode, month=month, currency=money.CURRENCY, total=total, lines=lines)
    )
    session.flush()
    logger.info("statement.issued", account_id=account_id.hex, livemode=livemode, month=f"{month:%Y-%m}", total=str(total))


def _invoices(session: Session, account_id: UUID, livemode: bool, month: date) -> Sequence[Invoice]:
    start = datetime(month.year, month.month, 1, tzinfo=UTC)
    end = (start + timedelta(days=32)).replace(day=1)
    return session.scalars(
        select(Invoice)
        .where(
            Invoice.account_id == account_id,
            Invoice.livemode == livemode,
            Invoice.batch_id.is_not(None),
            Invoice.issued_at >= start,
            Invoice.issued_at < end,
        )
        .order_by(Invoice.issued_at, Invoice.id)
    ).all()


def _lines(invoices: Sequence[Invoice]) -> list[InvoiceLine]:
    """A line for each invoice, and the rounding that makes them sum to whole cents."""
    lines = [
        InvoiceLine(kind="batch", description=ids.render("batch", invoice.batch_id), source_invoice_id=invoice.id, amount=invoice.total)
        for invoice in invoices
        if invoice.batch_id is not None
    ]
    with localcontext(money.EXACT):
        exact = sum((line.amount for line in lines), Decimal(0))
        lines.append(InvoiceLine(kind="rounding", description="Rounding to whole cents", amount=money.payable(exact) - exact))
    for position, line in enumerate(lines, start=1):
        line.position = position
    return lines


def _render(account_id: UUID, livemode: bool, month: date, lines: Sequence[InvoiceLine], issued: Invoice | None) -> dict[str, Any]:
    with localcontext(money.EXACT):
        exact = sum((line.amount for line in lines if line.kind == "batch"), Decimal(0))
        rounding = sum((line.amount for line in lines if line.kind == "rounding"), Decimal(0))
        total = exact + rounding
    return {
        "id": None if issued is None else ids.render("inv", issued.id),
        "object": "statement",
        "status": "draft" if issued is None else "issued",
        "month": f"{month:%Y-%m}",
        "livemode": livemode,
        "payable": livemode and issued is not None,
        "account_id": ids.render("acct", account_id),
        "currency": money.CURRENCY,
        "issued_at": None if issued is None else int(issued.issued_at.timestamp()),
        "lines": [_render_line(line) for line in lines],
        "exact_total": money.render(exact),
        "rounding": money.render(rounding),
        "total": money.render(total),
    }


def _render_line(line: InvoiceLine) -> dict[str, Any]:
    return {
        "kind": line.kind,
        "description": line.description,
        "invoice_id": None if line.source_invoice_id is None else ids.render("inv", line.source_invoice_id),
        "amount": money.render(line.amount),
    }

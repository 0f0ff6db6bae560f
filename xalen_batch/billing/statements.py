"""The statement of a month: what an account pays. It sums batch invoices and rounds once."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import exists, select, text
from sqlalchemy.orm import Session

from xalen_batch import ids, log, money
from xalen_batch.billing import invoices
from xalen_batch.billing.charges import USAGE_COUNTED
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Invoice, InvoiceLine

logger = log.get(__name__)

ZERO = Decimal(0)
# Statements issued in one transaction.
AT_ONCE = 500


def parse_month(month: str) -> date:
    """The first day of `2026-11`. InvalidRequest for anything else."""
    try:
        first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        first = None
    if first is None or f"{first:%Y-%m}" != month:
        raise InvalidRequest(f"month: {month[:40]!r} is no month. Write it as 2026-11.", param="month")
    return first


def statement(session: Session, *, account_id: UUID, livemode: bool, month: date) -> dict[str, Any]:
    """The statement of a month (its first day, UTC) as the API shows it: the issued one, or a draft. Writes nothing.

    An invoice belongs to the month it was issued in.
    """
    issued = session.scalars(
        select(Invoice).where(Invoice.account_id == account_id, Invoice.livemode == livemode, Invoice.month == month)
    ).one_or_none()
    if issued is not None:
        return _render(issued, issued.lines)
    draft = Invoice(account_id=account_id, livemode=livemode, month=month, currency=money.CURRENCY)
    return _render(draft, _lines(session, draft))


# The hour of grace lets transactions land that were open when the month ended. Months are issued in
# their order, so what is due begins behind an account's last statement: one look into an index for each.
_DUE = text("""
    SELECT account.id AS account_id, mode.livemode, date_trunc('month', first.issued_at AT TIME ZONE 'UTC')::date AS month
    FROM accounts AS account
    CROSS JOIN (VALUES (true), (false)) AS mode (livemode)
    CROSS JOIN LATERAL (
        SELECT coalesce(max(month) + interval '1 month', '-infinity') AT TIME ZONE 'UTC' AS since
        FROM invoices
        WHERE account_id = account.id AND livemode = mode.livemode AND month IS NOT NULL
    ) AS stated
    CROSS JOIN LATERAL (
        SELECT issued_at
        FROM invoices
        WHERE account_id = account.id AND livemode = mode.livemode AND batch_id IS NOT NULL
            AND issued_at >= stated.since
            AND issued_at < date_trunc('month', now() - interval '1 hour', 'UTC')
        ORDER BY issued_at
        LIMIT 1
    ) AS first
    LIMIT :at_once
""")


def issue_due(session: Session) -> int:
    """Issue the next statement of every account and mode that has a month over with invoices in it; returns how many.

    May run anywhere, at once: a month has one statement. Call it again for what is left.
    """
    due = session.execute(_DUE, {"at_once": AT_ONCE}).all()
    return sum(_issue(session, row.account_id, row.livemode, row.month) for row in due)


@money.exact
def _issue(session: Session, account_id: UUID, livemode: bool, month: date) -> bool:
    invoice = Invoice(account_id=account_id, livemode=livemode, month=month)
    lines = _lines(session, invoice)
    invoice.total = sum((line.amount for line in lines), ZERO)
    is_new = invoices.store(session, invoice, lines)
    if is_new:
        logger.info("statement.issued", account_id=account_id.hex, livemode=livemode, month=f"{month:%Y-%m}", total=str(invoice.total))
    return is_new


@money.exact
def _lines(session: Session, month: Invoice) -> list[InvoiceLine]:
    """A line for each batch invoice of the month, and the rounding that makes them sum to whole cents."""
    lines = [
        InvoiceLine(
            kind="batch",
            description=_description(invoice),
            source_invoice_id=invoice.id,
            reason=USAGE_COUNTED if invoice.has_counted else None,
            amount=invoice.total,
        )
        for invoice in _invoices(session, month)
    ]
    exact = sum((line.amount for line in lines), ZERO)
    lines.append(InvoiceLine(kind="rounding", description="Rounding to whole cents", amount=money.payable(exact) - exact))
    return lines


def _description(invoice: Any) -> str:
    words = f"Batch {ids.render('batch', invoice.batch_id)}, {invoice.issued_at.astimezone(UTC):%Y-%m-%d}"
    words += "" if invoice.schedule_name is None else f", schedule {invoice.schedule_name}"
    # In test mode all answers are.
    return f"{words}, simulated answers" if invoice.livemode and invoice.is_simulated else words


def _invoices(session: Session, month: Invoice) -> Sequence[Any]:
    assert month.month is not None
    start = datetime(month.month.year, month.month.month, 1, tzinfo=UTC)
    end = (start + timedelta(days=32)).replace(day=1)
    has_counted = exists().where(InvoiceLine.invoice_id == Invoice.id, InvoiceLine.reason == USAGE_COUNTED)
    is_simulated = exists().where(InvoiceLine.invoice_id == Invoice.id, InvoiceLine.answered_by == "simulated")
    return session.execute(
        select(
            Invoice.id,
            Invoice.batch_id,
            Invoice.total,
            Invoice.issued_at,
            Invoice.schedule_name,
            Invoice.livemode,
            is_simulated.label("is_simulated"),
            has_counted.label("has_counted"),
        )
        .where(
            Invoice.account_id == month.account_id,
            Invoice.livemode == month.livemode,
            Invoice.batch_id.is_not(None),
            Invoice.issued_at >= start,
            Invoice.issued_at < end,
        )
        .order_by(Invoice.issued_at, Invoice.id)
    ).all()


@money.exact
def _render(invoice: Invoice, lines: Sequence[InvoiceLine]) -> dict[str, Any]:
    exact = sum((line.amount for line in lines if line.kind == "batch"), ZERO)
    rounding = sum((line.amount for line in lines if line.kind == "rounding"), ZERO)
    is_issued = invoice.id is not None
    return {
        "id": ids.render("inv", invoice.id) if is_issued else None,
        "object": "statement",
        "status": "issued" if is_issued else "draft",
        "month": f"{invoice.month:%Y-%m}",
        "livemode": invoice.livemode,
        "payable": invoice.livemode and is_issued,
        "account_id": ids.render("acct", invoice.account_id),
        "currency": invoice.currency,
        "issued_at": int(invoice.issued_at.timestamp()) if is_issued else None,
        "lines": [_render_line(line) for line in lines],
        "exact_total": money.render(exact),
        "rounding": money.render(rounding),
        "total": money.render(exact + rounding),
    }


def _render_line(line: InvoiceLine) -> dict[str, Any]:
    return {
        "kind": line.kind,
        "description": line.description,
        "invoice_id": None if line.source_invoice_id is None else ids.render("inv", line.source_invoice_id),
        "reason": line.reason,
        "amount": money.render(line.amount),
    }

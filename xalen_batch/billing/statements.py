"""The statement of a month: what an account pays. It sums batch invoices and rounds once."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import DateTime, exists, func, literal, select, text, tuple_
from sqlalchemy.orm import Session, lazyload

from xalen_batch import db, ids, log, money
from xalen_batch.accounts.accounts import Owner
from xalen_batch.billing import invoices
from xalen_batch.billing.charges import USAGE_COUNTED
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Invoice, InvoiceLine

logger = log.get(__name__)

ZERO = Decimal(0)
# Statements that are looked up at a time.
AT_ONCE = 500
# Lines of a statement that are read and rendered at a time.
PAGE_LINES = 1_000


def parse_month(month: str) -> date:
    """The first day of `2026-11`. InvalidRequest for anything else."""
    try:
        first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        first = None
    if first is None or f"{first:%Y-%m}" != month:
        raise InvalidRequest(
            f"month: {month[:40]!r} is no month. Write it as 2026-11.", param="month"
        )
    return first


def pieces(owner: Owner, month: date) -> Iterator[bytes]:
    """The statement of a month (its first day, UTC) as JSON: the issued one, or a draft. Writes
    nothing.

    An invoice belongs to the month it was issued in. Each piece is read on its own and kept
    nowhere, so that neither memory nor a transaction grows with the month; the totals are those of
    the lines that were read.
    """
    return iter(_Reader(owner, month).read, b"")


class _Reader:
    """The place in a statement where the next piece begins, and the sums of the lines before it."""

    def __init__(self, owner: Owner, month: date) -> None:
        self._statement = Invoice(
            account_id=owner.account_id,
            livemode=owner.livemode,
            month=month,
            currency=money.CURRENCY,
        )
        self._after: Any = None
        self._sums = {"batch": ZERO, "rounding": ZERO}
        self._is_over = False

    @money.exact
    def read(self) -> bytes:
        """The next piece; empty at the end."""
        if self._is_over:
            return b""
        is_first = self._after is None
        with db.reading() as session:
            if is_first:
                self._statement = _issued(session, self._statement) or self._statement
            lines = self._lines(session)
        for line in lines:
            self._sums[line.kind] += line.amount
        shown = b",".join(orjson.dumps(_render_line(line)) for line in lines)
        opening = orjson.dumps(_head(self._statement))[:-1] + b',"lines":[' if is_first else b","
        content = opening + shown if is_first or shown else b""
        return (
            content + b"]," + orjson.dumps(_totals(**self._sums))[1:] if self._is_over else content
        )

    def _lines(self, session: Session) -> list[InvoiceLine]:
        """The next lines, with the rounding behind the last."""
        if self._statement.id is not None:
            lines = _issued_lines(session, self._statement, self._after or 0)
            self._is_over, self._after = len(lines) < PAGE_LINES, lines and lines[-1].position
            return lines
        invoices = _invoices(session, self._statement, self._after, PAGE_LINES)
        lines = [_line(invoice) for invoice in invoices]
        self._is_over = len(lines) < PAGE_LINES
        self._after = invoices and (invoices[-1].issued_at, invoices[-1].id)
        return [*lines, _rounding(self._sums["batch"] + _sum(lines))] if self._is_over else lines


def _issued(session: Session, statement: Invoice) -> Invoice | None:
    """The statement of that month as it was issued, without its lines."""
    return session.scalars(
        select(Invoice)
        .where(
            Invoice.account_id == statement.account_id,
            Invoice.livemode == statement.livemode,
            Invoice.month == statement.month,
        )
        .options(lazyload(Invoice.lines))
    ).one_or_none()


def _issued_lines(session: Session, statement: Invoice, after: int) -> list[InvoiceLine]:
    lines = select(InvoiceLine).where(
        InvoiceLine.invoice_id == statement.id, InvoiceLine.position > after
    )
    return list(session.scalars(lines.order_by(InvoiceLine.position).limit(PAGE_LINES)))


# The hour of grace lets transactions land that were open when the month ended. Months are issued in
# their order, so what is due begins behind an account's last statement: one look into an index for
# each.
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


def due(session: Session) -> Sequence[Any]:
    """The next statement (`account_id`, `livemode`, `month`) of each account and mode that has
    invoices in a month that is over.
    """
    return session.execute(_DUE, {"at_once": AT_ONCE}).all()


@money.exact
def issue(session: Session, due: Any) -> bool:
    """Issue one of `due`.

    False: it is issued already. May run anywhere, at once: a month has one statement.
    """
    invoice = Invoice(account_id=due.account_id, livemode=due.livemode, month=due.month)
    lines = _lines(session, invoice)
    invoice.total = _sum(lines)
    is_new = invoices.store(session, invoice, lines)
    if is_new:
        logger.info(
            "statement.issued",
            account_id=due.account_id,
            livemode=due.livemode,
            month=f"{due.month:%Y-%m}",
            total=str(invoice.total),
        )
    return is_new


@money.exact
def _lines(session: Session, month: Invoice) -> list[InvoiceLine]:
    """A line for each batch invoice of the month, and the rounding that makes them sum to whole
    cents.
    """
    lines = [_line(invoice) for invoice in _invoices(session, month)]
    return [*lines, _rounding(_sum(lines))]


def _line(invoice: Any) -> InvoiceLine:
    return InvoiceLine(
        kind="batch",
        description=_description(invoice),
        source_invoice_id=invoice.id,
        reason=USAGE_COUNTED if invoice.has_counted else None,
        amount=invoice.total,
    )


def _rounding(exact: Decimal) -> InvoiceLine:
    return InvoiceLine(
        kind="rounding", description="Rounding to whole cents", amount=money.payable(exact) - exact
    )


def _sum(lines: Sequence[InvoiceLine]) -> Decimal:
    return sum((line.amount for line in lines), ZERO)


def _description(invoice: Any) -> str:
    words = (
        f"Batch {ids.render('batch', invoice.batch_id)},"
        f" {invoice.issued_at.astimezone(UTC):%Y-%m-%d}"
    )
    words += "" if invoice.schedule_name is None else f", schedule {invoice.schedule_name}"
    # In test mode all answers are.
    return f"{words}, simulated answers" if invoice.livemode and invoice.is_simulated else words


def _invoices(
    session: Session,
    month: Invoice,
    after: tuple[datetime, UUID] | None = None,
    limit: int | None = None,
) -> Sequence[Any]:
    """Batch invoices of a month by the time of their issue; those behind that time and id."""
    assert month.month is not None
    start = literal(
        datetime(month.month.year, month.month.month, 1, tzinfo=UTC), DateTime(timezone=True)
    )
    # PostgreSQL's calendar goes on behind 9999, where Python's ends.
    end = start + func.make_interval(0, 1)
    has_counted = exists().where(
        InvoiceLine.invoice_id == Invoice.id, InvoiceLine.reason == USAGE_COUNTED
    )
    is_simulated = exists().where(
        InvoiceLine.invoice_id == Invoice.id, InvoiceLine.answered_by == "simulated"
    )
    found = (
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
        .limit(limit)
    )
    if after is not None:
        found = found.where(tuple_(Invoice.issued_at, Invoice.id) > after)
    return session.execute(found).all()


def _head(statement: Invoice) -> dict[str, Any]:
    """What comes before the lines."""
    is_issued = statement.id is not None
    return {
        "id": ids.render("inv", statement.id) if is_issued else None,
        "object": "statement",
        "status": "issued" if is_issued else "draft",
        "month": f"{statement.month:%Y-%m}",
        "livemode": statement.livemode,
        "payable": statement.livemode and is_issued,
        "account_id": ids.render("acct", statement.account_id),
        "currency": statement.currency,
        "issued_at": int(statement.issued_at.timestamp()) if is_issued else None,
    }


def _totals(*, batch: Decimal, rounding: Decimal) -> dict[str, str]:
    """What comes behind the lines."""
    return {
        "exact_total": money.render(batch),
        "rounding": money.render(rounding),
        "total": money.render(batch + rounding),
    }


def _render_line(line: InvoiceLine) -> dict[str, Any]:
    return {
        "kind": line.kind,
        "description": line.description,
        "invoice_id": (
            None if line.source_invoice_id is None else ids.render("inv", line.source_invoice_id)
        ),
        "reason": line.reason,
        "amount": money.render(line.amount),
    }

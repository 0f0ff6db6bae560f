"""Monthly statements, which accounts pay: the sum of their batch invoices, rounded once."""

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
# Most statements that `due` returns.
AT_ONCE = 500
# Lines of a statement that are read and rendered at a time.
PAGE_LINES = 1_000


def parse_month(month: str) -> date:
    """The first day of a month written as `2026-11`. Raises InvalidRequest for other texts."""
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
    """The statement of a month as JSON, in pieces: the issued one, or else a draft. Writes nothing.

    `month`: its first day, UTC. An invoice belongs to the month in which it was issued. Each piece
    is one statement, so neither memory nor a transaction grows with the month. The totals are the
    sums of the lines that were read.
    """
    return iter(_StatementReader(owner, month).read, b"")


class _StatementReader:
    """A cursor in a statement, with the sums of the lines before it. Keyset pagination.

    One thread at a time calls it: a thread of the API's pool.
    """

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
        content = b""
        if is_first:
            content = orjson.dumps(_head(self._statement))[:-1] + b',"lines":[' + shown
        elif shown:
            content = b"," + shown
        if self._is_over:
            content += b"]," + orjson.dumps(_totals(**self._sums))[1:]
        return content

    def _lines(self, session: Session) -> list[InvoiceLine]:
        """The next lines; the rounding line comes last."""
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
    """The issued statement of the same account, mode and month, without its lines."""
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


# Statements are due an hour after the end of the month, when transactions that were open then have
# committed. Months are issued in order, so the next one is found behind an account's last
# statement, by one index look-up.
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
    """The next statement to issue for each account and mode with invoices in a past month.

    Rows have `account_id`, `livemode` and `month`.
    """
    return session.execute(_DUE, {"at_once": AT_ONCE}).all()


@money.exact
def issue(session: Session, due: Any) -> bool:
    """Issue a statement that `due` returned. False: another process has issued it."""
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
    """A line for each batch invoice of the month, and a rounding line to whole cents."""
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
    # In test mode all answers are simulated, so the line does not say it.
    return f"{words}, simulated answers" if invoice.livemode and invoice.is_simulated else words


def _invoices(
    session: Session,
    month: Invoice,
    after: tuple[datetime, UUID] | None = None,
    limit: int | None = None,
) -> Sequence[Any]:
    """Batch invoices of a month by time of issue. `after`: time and id of the last one read."""
    assert month.month is not None
    start = literal(
        datetime(month.month.year, month.month.month, 1, tzinfo=UTC), DateTime(timezone=True)
    )
    # Computed by PostgreSQL, since Python's calendar ends with the year 9999.
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
    """The fields before the lines."""
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
    """The fields after the lines."""
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

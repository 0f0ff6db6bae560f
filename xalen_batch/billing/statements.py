"""Monthly statements, which accounts pay: the sum of their batch invoices, less credit notes,
rounded once.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import count
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Select,
    Text,
    Uuid,
    case,
    cast,
    func,
    insert,
    literal,
    null,
    select,
    text,
    true,
    tuple_,
)
from sqlalchemy.orm import Session, lazyload

from xalen_batch import events, ids, log, money
from xalen_batch.accounts.accounts import Owner
from xalen_batch.billing import invoices, statement_credits
from xalen_batch.billing.charges import USAGE_COUNTED
from xalen_batch.errors import InvalidRequest
from xalen_batch.events import Happened
from xalen_batch.models import Invoice, InvoiceLine
from xalen_batch.models.events import EventType

logger = log.get(__name__)

ZERO = Decimal(0)
# Most statements that `due` returns.
AT_ONCE = 500
# Lines that one INSERT adds. It takes about a second, far less than the statement timeout.
LINES_AT_ONCE = 100_000


class InvoiceAdded(Exception):
    """An invoice or a credit note of the month was committed while its statement was being issued.

    The statement is not issued; the next attempt includes the invoice.
    """


class Place(NamedTuple):
    """The position of a line among those of its month: invoices, then credit notes, each by time."""

    issued_at: datetime
    id: UUID
    is_credit: bool = False

    @property
    def key(self) -> tuple[datetime, UUID]:
        return self.issued_at, self.id


def parse_month(month: str, *, param: str = "month") -> date:
    """The first day of a month written as `2026-11`. Raises InvalidRequest for other texts.

    `param`: the name of the request's field.
    """
    try:
        first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        first = None
    if first is None or f"{first:%Y-%m}" != month:
        raise InvalidRequest(
            f"{param}: {month[:40]!r} is no month. Write it as 2026-11.", param=param
        )
    return first


def draft_statement(owner: Owner, month: date) -> Invoice:
    return Invoice(
        account_id=owner.account_id, livemode=owner.livemode, month=month, currency=money.CURRENCY
    )


def issued_statement(session: Session, statement: Invoice) -> Invoice | None:
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


# Statements are due an hour after the end of the month, when transactions that were open then have
# committed. Months are issued in order, so the next one is found behind an account's last
# statement, by one index look-up. A month with a credit note and without an invoice has one too.
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
        SELECT min(issued_at) AS issued_at
        FROM (
            (
                SELECT issued_at
                FROM invoices
                WHERE account_id = account.id AND livemode = mode.livemode AND batch_id IS NOT NULL
                    AND issued_at >= stated.since
                    AND issued_at < date_trunc('month', now() - interval '1 hour', 'UTC')
                ORDER BY issued_at
                LIMIT 1
            )
            UNION ALL
            (
                SELECT greatest(created_at, stated.since)
                FROM credit_notes
                WHERE account_id = account.id AND livemode = mode.livemode AND statement_id IS NULL
                ORDER BY created_at
                LIMIT 1
            )
        ) AS either
    ) AS first
    WHERE first.issued_at < date_trunc('month', now() - interval '1 hour', 'UTC')
    LIMIT :at_once
""")


def due(session: Session) -> Sequence[Any]:
    """The next statement to issue for each account and mode with something in a past month.

    Rows have `account_id`, `livemode` and `month`.
    """
    return session.execute(_DUE, {"at_once": AT_ONCE}).all()


@money.exact
def issue(session: Session, due: Any) -> bool:
    """Issue a statement that `due` returned. False: another process has issued it.

    PostgreSQL makes the lines out of the invoices, so they do not pass through this process. Until
    the transaction commits, nobody sees a part of the statement; after a crash nothing is left.
    Raises InvoiceAdded if the lines do not sum to the invoices.
    """
    draft = Invoice(account_id=due.account_id, livemode=due.livemode, month=due.month)
    invoiced = session.execute(
        select(func.coalesce(func.sum(Invoice.total), ZERO)).where(*of_month(draft))
    ).scalar_one()
    exact = invoiced + statement_credits.sum_of_month(session, draft)
    rounding = rounding_line(exact)
    draft.total = exact + rounding.amount
    if not invoices.store(session, draft, []):
        return False
    statement = issued_statement(session, draft)
    assert statement is not None
    _insert_lines(session, statement)
    statement_credits.insert_lines(session, statement, _sum_of_lines(session, statement)[0])
    number, stored = _sum_of_lines(session, statement)
    if stored != exact:
        raise InvoiceAdded(
            f"statement {due.month:%Y-%m} of account {due.account_id}: its lines sum to {stored},"
            f" the invoices and credit notes to {exact}"
        )
    rounding.invoice_id, rounding.position = statement.id, number + 1
    session.add(rounding)
    events.record(session, draft, Happened(EventType.INVOICE_ISSUED, draft.id))
    logger.info(
        "statement.issued",
        account_id=due.account_id,
        livemode=due.livemode,
        month=f"{due.month:%Y-%m}",
        total=str(statement.total),
    )
    return True


def _sum_of_lines(session: Session, statement: Invoice) -> tuple[int, Decimal]:
    """The number of the lines that are stored, and their sum."""
    number, sum = session.execute(
        select(func.count(), func.coalesce(func.sum(InvoiceLine.amount), ZERO)).where(
            InvoiceLine.invoice_id == statement.id
        )
    ).one()
    return number, sum


def _insert_lines(session: Session, statement: Invoice) -> None:
    """Insert a line for each batch invoice of the month, from position 1 on.

    LINES_AT_ONCE at a time, so that no INSERT reaches the statement timeout.
    """
    after = None
    for number in count(step=LINES_AT_ONCE):
        some = batch_lines(statement, after).limit(LINES_AT_ONCE).subquery().c
        columns = {
            "invoice_id": literal(statement.id),
            "position": number
            + func.row_number().over(order_by=(some.issued_at, some.source_invoice_id)),
            "kind": some.kind,
            "description": some.description,
            "source_invoice_id": some.source_invoice_id,
            "reason": some.reason,
            "amount": some.amount,
        }
        session.execute(insert(InvoiceLine).from_select(list(columns), select(*columns.values())))
        last = session.execute(
            select(Invoice.issued_at, Invoice.id)
            .join(InvoiceLine, InvoiceLine.source_invoice_id == Invoice.id)
            .where(
                InvoiceLine.invoice_id == statement.id,
                InvoiceLine.position == number + LINES_AT_ONCE,
            )
        ).one_or_none()
        if last is None:
            return
        after = Place(*last)


def batch_lines(month: Invoice, after: Place | None = None) -> Select[Any]:
    """The lines of a month's batch invoices, sorted by time of issue. `after`: the last one read.

    They have the attributes of an InvoiceLine that a statement shows, and `issued_at`.
    """
    # LATERAL: one look-up for each invoice. For EXISTS, PostgreSQL may read the lines of all
    # invoices.
    flags = (
        select(
            func.bool_or(InvoiceLine.reason == USAGE_COUNTED).label("has_counted"),
            func.bool_or(InvoiceLine.answered_by == "simulated").label("is_simulated"),
        )
        .where(InvoiceLine.invoice_id == Invoice.id)
        .lateral("flags")
    )
    # In test mode all answers are simulated, so the line does not say it.
    simulated = case((Invoice.livemode & flags.c.is_simulated, ", simulated answers"), else_="")
    description = func.concat(
        f"Batch {ids.prefix('batch')}",
        func.replace(cast(Invoice.batch_id, Text), "-", ""),
        ", ",
        func.to_char(func.timezone("UTC", Invoice.issued_at), "YYYY-MM-DD"),
        # Null, which concat() leaves out, if there is no schedule.
        ", schedule " + Invoice.schedule_name,
        simulated,
    )
    lines = (
        select(
            literal("batch").label("kind"),
            description.label("description"),
            Invoice.id.label("source_invoice_id"),
            cast(null(), Uuid).label("source_credit_id"),
            case((flags.c.has_counted, USAGE_COUNTED)).label("reason"),
            Invoice.total.label("amount"),
            Invoice.issued_at,
        )
        .join(flags, true())
        .where(*of_month(month))
        .order_by(Invoice.issued_at, Invoice.id)
    )
    if after is None:
        return lines
    # The index ends with the time, so the comparison of pairs alone would begin with the month.
    return lines.where(
        Invoice.issued_at >= after.issued_at, tuple_(Invoice.issued_at, Invoice.id) > after.key
    )


def of_month(month: Invoice) -> Sequence[ColumnElement[bool]]:
    """The conditions on batch invoices of the account, mode and month of a statement."""
    assert month.month is not None
    start = literal(
        datetime(month.month.year, month.month.month, 1, tzinfo=UTC), DateTime(timezone=True)
    )
    # Computed by PostgreSQL, since Python's calendar ends with the year 9999.
    end = start + func.make_interval(0, 1)
    return (
        Invoice.account_id == month.account_id,
        Invoice.livemode == month.livemode,
        Invoice.batch_id.is_not(None),
        Invoice.issued_at >= start,
        Invoice.issued_at < end,
    )


def rounding_line(exact: Decimal) -> InvoiceLine:
    return InvoiceLine(
        kind="rounding", description="Rounding to whole cents", amount=money.payable(exact) - exact
    )

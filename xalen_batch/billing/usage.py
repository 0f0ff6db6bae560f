"""Usage of a month, by account and mode, for the operator."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class MonthUsage:
    """The usage of one account in one mode: batches invoiced in the month, and open batches.

    Amounts are USD.
    """

    account_id: UUID
    name: str
    livemode: bool
    batches: int
    input_tokens: int
    output_tokens: int
    total: Decimal
    open_batches: int
    # Charges of the ended lines of open batches, which are invoiced when the batch ends.
    open_total: Decimal


# An invoice belongs to the month in which it was issued, as on a statement. Open batches belong to
# no month; `with_open` adds them.
_USAGE = text("""
    WITH invoiced AS (
        SELECT i.account_id, i.livemode, count(*) AS batches, sum(i.total) AS total, sum(u.input) AS input, sum(u.output) AS output
        FROM invoices i CROSS JOIN LATERAL (
            SELECT sum(l.quantity) FILTER (WHERE l.component IN ('input', 'cached_input')) AS input, sum(l.quantity) FILTER (WHERE l.component = 'output') AS output
            FROM invoice_lines l WHERE l.invoice_id = i.id AND l.kind = 'usage'
        ) u
        WHERE i.batch_id IS NOT NULL AND i.issued_at >= :since AND i.issued_at < :until
        GROUP BY i.account_id, i.livemode
    ), opened AS (
        SELECT b.account_id, b.livemode, count(*) AS batches, sum(r.total) AS total
        FROM batches b CROSS JOIN LATERAL (SELECT sum(r.amount) AS total FROM results r WHERE r.batch_id = b.id) r
        WHERE :with_open AND b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
        GROUP BY b.account_id, b.livemode
    )
    SELECT a.id AS account_id, a.name, m.livemode, coalesce(i.batches, 0) AS batches, coalesce(i.input, 0)::bigint AS input_tokens,
           coalesce(i.output, 0)::bigint AS output_tokens, coalesce(i.total, 0) AS total, coalesce(o.batches, 0) AS open_batches,
           coalesce(o.total, 0) AS open_total
    FROM accounts a CROSS JOIN (VALUES (false), (true)) m (livemode)
    LEFT JOIN invoiced i ON i.account_id = a.id AND i.livemode = m.livemode
    LEFT JOIN opened o ON o.account_id = a.id AND o.livemode = m.livemode
    WHERE i.batches IS NOT NULL OR o.batches IS NOT NULL
    ORDER BY a.name, m.livemode
""")


def of_month(session: Session, month: date, *, with_open: bool) -> Sequence[MonthUsage]:
    """The usage of each account and mode that has any, as sums of batch invoices before rounding.

    `month`: its first day, UTC.
    """
    since = datetime(month.year, month.month, 1, tzinfo=UTC)
    until = (since + timedelta(days=32)).replace(day=1)
    rows = session.execute(
        _USAGE, {"since": since, "until": until, "with_open": with_open}
    ).mappings()
    return [MonthUsage(**row) for row in rows]

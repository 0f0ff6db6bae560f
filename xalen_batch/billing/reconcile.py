"""Reconciliation: derive all billed amounts once more from the results, and compare.

In SQL, for three reasons: NUMERIC is exact, the database can scan millions of lines, and the second
derivation shares no code with the first.
"""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.orm import Session

from xalen_batch import ids

ROWS_AT_A_TIME = 500


class Difference(NamedTuple):
    """Two values that should be equal, as text. `where`: the id of a batch or a statement."""

    where: str
    what: str
    expected: str
    found: str


def differences(session: Session) -> Iterator[Difference]:
    """All differences, with bounded memory. No difference means that the books are right.

    The session's transaction must be REPEATABLE READ (`db.snapshot`), so that all checks see one
    snapshot while batches go on. Raises RuntimeError for another isolation level: batches that end
    between two checks would be reported as differences.
    """
    isolation = session.scalar(text("SHOW transaction_isolation"))
    if isolation != "repeatable read":
        raise RuntimeError(
            f"reconcile needs a snapshot of the database, and this transaction is {isolation}"
        )
    for check in CHECKS:
        yield from map(
            _difference,
            session.execute(text(check), execution_options={"yield_per": ROWS_AT_A_TIME}),
        )


def _difference(row: Any) -> Difference:
    return Difference(ids.render(row.kind, row.id), row.what, _text(row.expected), _text(row.found))


def _text(value: Decimal | int | str | None) -> str:
    if isinstance(value, Decimal):
        digits = f"{value:f}"
        return digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "none" if value is None else str(value)


_LINES = """
    SELECT 'batch' AS kind, batch_id AS id, 'charge of line ' || line_no AS what, expected, amount AS found
    FROM (
        SELECT result.batch_id, result.line_no, result.amount, CASE WHEN result.status_code BETWEEN 200 AND 299 THEN
            (result.input_tokens * coalesce((batch.price_snapshot -> result.model ->> 'input')::numeric, 0)
                + result.output_tokens * coalesce((batch.price_snapshot -> result.model ->> 'output')::numeric, 0))
            * 0.000001 * (1 - batch.discount_rate) END AS expected
        FROM results AS result JOIN batches AS batch ON batch.id = result.batch_id
    ) AS line
    WHERE amount IS DISTINCT FROM expected
"""

_ORPHANS = """
    SELECT 'batch' AS kind, batch_id AS id, 'lines of a batch that is not there' AS what, 0 AS expected, count(*) AS found
    FROM results WHERE NOT EXISTS (SELECT FROM batches WHERE batches.id = results.batch_id)
    GROUP BY batch_id
"""

# `cancelled` and `expired` are null in batches that ended before these columns existed; `failed`
# includes these lines there.
_COUNTS = """
    SELECT 'batch' AS kind, batch.id, counter.what, counter.expected, counter.found
    FROM batches AS batch
    CROSS JOIN LATERAL (
        SELECT count(*) AS total, count(amount) AS completed, count(*) - count(amount) AS unsuccessful,
            count(*) FILTER (WHERE error_code = 'batch_cancelled') AS cancelled,
            count(*) FILTER (WHERE error_code = 'batch_expired') AS expired,
            coalesce(sum(input_tokens), 0) AS input_tokens, coalesce(sum(cached_tokens), 0) AS cached_tokens,
            coalesce(sum(output_tokens), 0) AS output_tokens, coalesce(sum(reasoning_tokens), 0) AS reasoning_tokens
        FROM results WHERE batch_id = batch.id
    ) AS line
    CROSS JOIN LATERAL (VALUES
        ('number of lines', batch.total, line.total),
        ('completed', line.completed, batch.completed),
        ('failed', line.unsuccessful - coalesce(batch.cancelled, 0) - coalesce(batch.expired, 0), batch.failed),
        ('cancelled', line.cancelled, coalesce(batch.cancelled, line.cancelled)),
        ('expired', line.expired, coalesce(batch.expired, line.expired)),
        ('input_tokens', line.input_tokens, batch.input_tokens),
        ('cached_tokens', line.cached_tokens, batch.cached_tokens),
        ('output_tokens', line.output_tokens, batch.output_tokens),
        ('reasoning_tokens', line.reasoning_tokens, batch.reasoning_tokens)
    ) AS counter (what, expected, found)
    WHERE batch.status IN ('completed', 'expired', 'cancelled') AND counter.expected <> counter.found
"""

_INVOICES = """
    SELECT 'batch' AS kind, batch.id, 'number of invoices' AS what,
        (batch.status IN ('completed', 'expired', 'cancelled'))::int AS expected, count(invoice.id) AS found
    FROM batches AS batch LEFT JOIN invoices AS invoice ON invoice.batch_id = batch.id
    GROUP BY batch.id
    HAVING count(invoice.id) <> (batch.status IN ('completed', 'expired', 'cancelled'))::int
"""

_TOTALS = """
    SELECT 'batch' AS kind, invoice.batch_id AS id, sums.what, sums.expected, invoice.total AS found
    FROM invoices AS invoice
    CROSS JOIN LATERAL (VALUES
        ('total of the invoice, by the charges of its lines',
            (SELECT coalesce(sum(amount), 0) FROM results WHERE batch_id = invoice.batch_id)),
        ('total of the invoice, by its own lines',
            (SELECT coalesce(sum(amount), 0) FROM invoice_lines WHERE invoice_id = invoice.id))
    ) AS sums (what, expected)
    WHERE invoice.batch_id IS NOT NULL AND sums.expected <> invoice.total
"""

# Tokens of a component without a price are on a separate line, at 0.
_USAGE = """
    SELECT 'batch' AS kind, coalesce(used.batch_id, invoiced.batch_id) AS id,
        'invoiced ' || coalesce(used.component, invoiced.component) || ' tokens of ' || coalesce(used.model, invoiced.model) AS what,
        used.tokens AS expected, invoiced.tokens AS found
    FROM (
        SELECT invoice.batch_id, result.model, part.component, sum(part.tokens) AS tokens
        FROM invoices AS invoice
        JOIN results AS result ON result.batch_id = invoice.batch_id AND result.amount IS NOT NULL
        CROSS JOIN LATERAL (VALUES ('input', input_tokens), ('output', output_tokens)) AS part (component, tokens)
        GROUP BY invoice.batch_id, result.model, part.component
        HAVING sum(part.tokens) > 0
    ) AS used
    FULL JOIN (
        SELECT invoice.batch_id, line.model, line.component, sum(line.quantity) AS tokens
        FROM invoices AS invoice JOIN invoice_lines AS line ON line.invoice_id = invoice.id
        WHERE line.component IS NOT NULL
        GROUP BY invoice.batch_id, line.model, line.component
    ) AS invoiced USING (batch_id, model, component)
    WHERE used.tokens IS DISTINCT FROM invoiced.tokens
"""

_USAGE_PRICES = """
    SELECT 'batch' AS kind, invoice.batch_id AS id, 'amount of ' || line.component || ' tokens of ' || line.model AS what,
        line.quantity * coalesce((batch.price_snapshot -> line.model ->> line.component)::numeric, 0) * 0.000001 AS expected,
        line.amount AS found
    FROM invoices AS invoice
    JOIN invoice_lines AS line ON line.invoice_id = invoice.id
    JOIN batches AS batch ON batch.id = invoice.batch_id
    WHERE line.component IS NOT NULL
        AND line.amount <> line.quantity * coalesce((batch.price_snapshot -> line.model ->> line.component)::numeric, 0) * 0.000001
"""

_NOT_BILLED = """
    SELECT 'batch' AS kind, invoice.batch_id AS id, 'requests listed as not billed' AS what, failed.requests AS expected, listed.requests AS found
    FROM invoices AS invoice
    CROSS JOIN LATERAL (SELECT count(*) AS requests FROM results WHERE batch_id = invoice.batch_id AND amount IS NULL) AS failed
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(quantity), 0) AS requests FROM invoice_lines
        WHERE invoice_id = invoice.id AND kind = 'not_billed' AND component IS NULL
    ) AS listed
    WHERE invoice.batch_id IS NOT NULL AND failed.requests <> listed.requests
"""

# Plain joins become hash joins. With LATERAL, PostgreSQL scanned all invoice lines for each batch.
_OWNERS = """
    SELECT 'batch' AS kind, batch.id, 'account and mode of the ' || other.what AS what,
        concat(batch.account_id, CASE WHEN batch.livemode THEN ' live' ELSE ' test' END) AS expected,
        concat(other.account_id, CASE WHEN other.livemode THEN ' live' ELSE ' test' END) AS found
    FROM (
        SELECT 'invoice', batch_id, account_id, livemode FROM invoices WHERE batch_id IS NOT NULL
        UNION ALL SELECT 'input file', owned.id, file.account_id, file.livemode
            FROM batches AS owned JOIN files AS file ON file.id = owned.input_file_id
        UNION ALL SELECT 'statement', invoice.batch_id, statement.account_id, statement.livemode
            FROM invoice_lines AS line
            JOIN invoices AS invoice ON invoice.id = line.source_invoice_id
            JOIN invoices AS statement ON statement.id = line.invoice_id
    ) AS other (what, batch_id, account_id, livemode)
    JOIN batches AS batch ON batch.id = other.batch_id
    WHERE (other.account_id, other.livemode) <> (batch.account_id, batch.livemode)
"""

# round() of a positive NUMERIC is half up, as the payable amount is.
_STATEMENTS = """
    SELECT 'inv' AS kind, statement.id, sums.what, sums.expected, sums.found
    FROM invoices AS statement
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(total), 0) AS exact FROM invoices
        WHERE batch_id IS NOT NULL AND account_id = statement.account_id AND livemode = statement.livemode
            AND date_trunc('month', issued_at AT TIME ZONE 'UTC')::date = statement.month
    ) AS invoiced
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(amount), 0) AS total,
            coalesce(sum(amount) FILTER (WHERE kind = 'batch'), 0) AS exact
        FROM invoice_lines WHERE invoice_id = statement.id
    ) AS line
    CROSS JOIN LATERAL (VALUES
        ('invoices on the statement', invoiced.exact, line.exact),
        ('total of the statement', round(invoiced.exact, 2), statement.total),
        ('total of the statement, by its own lines', line.total, statement.total)
    ) AS sums (what, expected, found)
    WHERE statement.month IS NOT NULL AND sums.expected <> sums.found
"""

CHECKS = (
    _LINES,
    _ORPHANS,
    _COUNTS,
    _INVOICES,
    _TOTALS,
    _USAGE,
    _USAGE_PRICES,
    _NOT_BILLED,
    _OWNERS,
    _STATEMENTS,
)

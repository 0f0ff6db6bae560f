"""Reconciliation: derive all billed amounts once more from the lines of batches, and compare.

In SQL, for three reasons: NUMERIC is exact, the database can scan millions of lines, and the second
derivation shares no code with the first. The lines are rows of `results`, or of `sealed_lines` once
their batch is sealed.

The walk goes through the batches, then through the statements, in the order of their ids. Each step
has a snapshot of its own: its checks see one moment while batches go on, and no snapshot lasts long.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from decimal import Decimal
from typing import Any, Literal, NamedTuple
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from xalen_batch import db, ids

# Most batches and most lines of a step. A batch with more lines is a step of its own.
BATCHES_AT_ONCE = 5_000
LINES_AT_ONCE = 200_000
STATEMENTS_AT_ONCE = 100
# Steps at a time. PostgreSQL does all of the work, on a core for each.
AT_A_TIME = 2

FIRST, LAST = UUID(int=0), UUID(int=2**128 - 1)


class Difference(NamedTuple):
    """Two values that should be equal, as text. `where`: the id of a batch or a statement."""

    where: str
    what: str
    expected: str
    found: str


class Step(NamedTuple):
    """Checked batches or statements (`inv`). `last`: the highest of their ids."""

    kind: Literal["batch", "inv"]
    checked: int
    last: UUID
    differences: Sequence[Difference]


Snapshot = Callable[[], AbstractContextManager[Session]]


def steps(snapshot: Snapshot = db.snapshot, *, after: UUID = FIRST) -> Iterator[Step]:
    """Check the batches with an id above `after`, then all statements.

    `snapshot` makes a REPEATABLE READ session, on any thread. Raises RuntimeError for another isolation level:
    batches that end between two checks would be reported as differences.
    """
    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="reconcile") as pool:
        coming: deque[Future[Step]] = deque()
        is_last = False
        while coming or not is_last:
            while not is_last and len(coming) < AT_A_TIME:
                with snapshot() as session:
                    batches = _next(session, _NEXT_BATCHES, after)
                coming.append(pool.submit(_batch_step, snapshot, batches, after))
                is_last = not batches
                after = batches[-1] if batches else after
            yield coming.popleft().result()
    after = FIRST
    while True:
        with snapshot() as session:
            statements = _next(session, _NEXT_STATEMENTS, after)
            differences = [
                found
                for check in STATEMENT_CHECKS
                for found in _found(session, check, ids=statements)
            ]
        if not statements:
            return
        after = statements[-1]
        yield Step("inv", len(statements), after, differences)


def _batch_step(snapshot: Snapshot, batches: Sequence[UUID], after: UUID) -> Step:
    """Check these batches, and look for lines of batches that are not there, in one snapshot."""
    until = batches[-1] if batches else LAST
    with snapshot() as session:
        _refuse_unless_repeatable(session)
        differences = [
            *of_batches(session, batches),
            *_found(session, _ORPHANS, after=after, until=until),
        ]
    return Step("batch", len(batches), until, differences)


def differences(snapshot: Snapshot = db.snapshot) -> Iterator[Difference]:
    """All differences. No difference means that the books are right."""
    for step in steps(snapshot):
        yield from step.differences


def of_batches(session: Session, batches: Sequence[UUID]) -> Iterator[Difference]:
    """The differences of these batches, their lines and their invoices."""
    sealed = session.execute(_SEALED, {"ids": batches}).scalars().all()
    rows = sorted(set(batches) - set(sealed))
    for check in BATCH_CHECKS:
        yield from _found(session, check, ids=batches, rows=rows, sealed=sealed)


def _refuse_unless_repeatable(session: Session) -> None:
    isolation = session.scalar(text("SELECT current_setting('transaction_isolation')"))
    if isolation != "repeatable read":
        raise RuntimeError(
            f"reconcile needs a snapshot of the database, and this transaction is {isolation}"
        )


def _next(session: Session, query: TextClause, after: UUID) -> list[UUID]:
    return list(session.execute(query, {"after": after}).scalars())


def _found(session: Session, check: str, **values: Any) -> list[Difference]:
    names = {name: value for name, value in values.items() if f":{name}" in check}
    return [
        Difference(ids.render(row.kind, row.id), row.what, _text(row.expected), _text(row.found))
        for row in session.execute(text(check), names)
    ]


def _text(value: Decimal | int | str | None) -> str:
    if isinstance(value, Decimal):
        digits = f"{value:f}"
        return digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "none" if value is None else str(value)


_NEXT_BATCHES = text(f"""
    SELECT id FROM (
        SELECT id, row_number() OVER walk AS number, sum(total) OVER walk AS lines FROM (
            SELECT id, total FROM batches WHERE id > :after ORDER BY id LIMIT {BATCHES_AT_ONCE}
        ) AS coming
        WINDOW walk AS (ORDER BY id)
    ) AS counted
    WHERE number = 1 OR lines <= {LINES_AT_ONCE} ORDER BY id
""")
_NEXT_STATEMENTS = text(f"""
    SELECT id FROM invoices WHERE month IS NOT NULL AND id > :after ORDER BY id LIMIT {STATEMENTS_AT_ONCE}
""")
_SEALED = text("SELECT id FROM batches WHERE id = ANY(:ids) AND sealed_at IS NOT NULL")

_ORPHANS = """
    SELECT 'batch' AS kind, batch_id AS id, 'lines of a batch that is not there' AS what, 0 AS expected, count(*) AS found
    FROM results WHERE batch_id > :after AND batch_id <= :until
        AND NOT EXISTS (SELECT FROM batches WHERE batches.id = results.batch_id)
    GROUP BY batch_id
"""

# Net prices per token of the batches' models.
_PRICES = """
    SELECT batch.id AS batch_id, each.model,
        coalesce((each.price ->> 'input')::numeric, 0) * 0.000001 * (1 - batch.discount_rate) AS input,
        coalesce((each.price ->> 'cached_input')::numeric, (each.price ->> 'input')::numeric, 0) * 0.000001 * (1 - batch.discount_rate) AS cached,
        each.price ? 'cached_input' AS has_cached,
        coalesce((each.price ->> 'output')::numeric, 0) * 0.000001 * (1 - batch.discount_rate) AS output
    FROM batches AS batch CROSS JOIN LATERAL jsonb_each(batch.price_snapshot) AS each (model, price)
    WHERE batch.id = ANY(:ids)
"""

# Sealed lines without amounts were charged by price; sealing compared each of them.
_LINES = f"""
    SELECT 'batch' AS kind, batch_id AS id, 'charge of line ' || line_no AS what, expected, amount AS found
    FROM (
        SELECT batch_id, line_no, amount, CASE WHEN status_code BETWEEN 200 AND 299 THEN
            (input_tokens - cached_tokens) * coalesce(price.input, 0) + cached_tokens * coalesce(price.cached, 0)
            + output_tokens * coalesce(price.output, 0) END AS expected
        FROM (
            SELECT batch_id, line_no, model, status_code, input_tokens, cached_tokens, output_tokens, amount
            FROM results WHERE batch_id = ANY(:rows)
            UNION ALL
            SELECT sealed.batch_id, coalesce(line.line_no, sealed.first_line + line.position - 1), line.model,
                line.status_code, line.input_tokens, line.cached_tokens, line.output_tokens, line.amount
            FROM sealed_lines AS sealed
            CROSS JOIN LATERAL unnest(line_nos, models, status_codes, input_tokens, cached_tokens, output_tokens, amounts)
                WITH ORDINALITY AS line (line_no, model, status_code, input_tokens, cached_tokens, output_tokens, amount, position)
            WHERE sealed.batch_id = ANY(:sealed) AND amounts IS NOT NULL
        ) AS line
        LEFT JOIN ({_PRICES}) AS price USING (batch_id, model)
    ) AS line
    WHERE amount IS DISTINCT FROM expected
"""

_ADDED = """
    count(*) AS lines, count(*) FILTER (WHERE status_code < 300) AS completed,
    count(*) FILTER (WHERE error_code = 'batch_cancelled') AS cancelled,
    count(*) FILTER (WHERE error_code = 'batch_expired') AS expired,
    sum(input_tokens) AS input_tokens, sum(cached_tokens) AS cached_tokens,
    sum(output_tokens) AS output_tokens, sum(reasoning_tokens) AS reasoning_tokens,
    coalesce(sum(input_tokens) FILTER (WHERE status_code < 300), 0) AS billed_input,
    coalesce(sum(cached_tokens) FILTER (WHERE status_code < 300), 0) AS billed_cached,
    coalesce(sum(output_tokens) FILTER (WHERE status_code < 300), 0) AS billed_output,
    coalesce(sum(amount), 0) AS charged
"""
# Sums over the lines of each batch and model, in one pass. The lines of each row of `sealed_lines` are
# added up by themselves: a sort of the lines of all batches would take longer.
_USED = f"""
    used AS MATERIALIZED (
        SELECT line.*, charged + is_by_price::int
            * ((billed_input - billed_cached) * coalesce(price.input, 0) + billed_cached * coalesce(price.cached, 0)
                + billed_output * coalesce(price.output, 0)) AS amount,
            CASE WHEN price.has_cached THEN billed_cached ELSE 0 END AS cheaper
        FROM (
            SELECT batch_id, false AS is_by_price, model, {_ADDED} FROM results WHERE batch_id = ANY(:rows)
            GROUP BY batch_id, model
            UNION ALL
            SELECT sealed.batch_id, amounts IS NULL, added.*
            FROM sealed_lines AS sealed
            CROSS JOIN LATERAL (
                SELECT model, {_ADDED}
                FROM unnest(models, status_codes, error_codes, sealed.input_tokens, sealed.cached_tokens,
                    sealed.output_tokens, sealed.reasoning_tokens, amounts)
                    AS line (model, status_code, error_code, input_tokens, cached_tokens, output_tokens, reasoning_tokens, amount)
                GROUP BY model
            ) AS added
            WHERE sealed.batch_id = ANY(:sealed)
        ) AS line
        LEFT JOIN ({_PRICES}) AS price USING (batch_id, model)
    )
"""

# `cancelled` and `expired` are null in batches that ended before these columns existed; `failed`
# includes these lines there. Tokens of a component without a price are on a line of the invoice of
# their own, at 0.
_SUMS = f"""
    WITH {_USED},
    line AS (
        SELECT batch.id AS batch_id, coalesce(sum(lines), 0) AS total, coalesce(sum(completed), 0) AS completed,
            coalesce(sum(lines) - sum(completed), 0) AS unsuccessful, coalesce(sum(cancelled), 0) AS cancelled,
            coalesce(sum(expired), 0) AS expired, coalesce(sum(input_tokens), 0) AS input_tokens,
            coalesce(sum(cached_tokens), 0) AS cached_tokens, coalesce(sum(output_tokens), 0) AS output_tokens,
            coalesce(sum(reasoning_tokens), 0) AS reasoning_tokens, coalesce(sum(amount), 0) AS amount
        FROM (SELECT id FROM batches WHERE id = ANY(:ids)) AS batch LEFT JOIN used ON used.batch_id = batch.id
        GROUP BY batch.id
    )
    SELECT 'batch' AS kind, batch.id, counter.what, counter.expected, counter.found
    FROM batches AS batch JOIN line ON line.batch_id = batch.id
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
    WHERE batch.id = ANY(:ids) AND batch.status IN ('completed', 'expired', 'cancelled')
        AND counter.expected <> counter.found

    UNION ALL
    SELECT 'batch', invoice.batch_id, sums.what, sums.expected, sums.found
    FROM invoices AS invoice JOIN line USING (batch_id)
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(amount), 0) AS amount,
            coalesce(sum(quantity) FILTER (WHERE kind = 'not_billed' AND component IS NULL), 0) AS not_billed
        FROM invoice_lines WHERE invoice_id = invoice.id
    ) AS own
    CROSS JOIN LATERAL (VALUES
        ('total of the invoice, by the charges of its lines', line.amount, invoice.total),
        ('total of the invoice, by its own lines', own.amount, invoice.total),
        ('requests listed as not billed', line.unsuccessful, own.not_billed)
    ) AS sums (what, expected, found)
    WHERE invoice.batch_id = ANY(:ids) AND sums.expected <> sums.found

    UNION ALL
    SELECT 'batch', coalesce(used.batch_id, invoiced.batch_id),
        'invoiced ' || coalesce(used.component, invoiced.component) || ' tokens of ' || coalesce(used.model, invoiced.model),
        used.tokens, invoiced.tokens
    FROM (
        SELECT used.batch_id, used.model, part.component, sum(part.tokens) AS tokens
        FROM used JOIN invoices AS invoice ON invoice.batch_id = used.batch_id
        CROSS JOIN LATERAL (
            VALUES ('input', billed_input - cheaper), ('cached_input', cheaper), ('output', billed_output)
        ) AS part (component, tokens)
        WHERE invoice.batch_id = ANY(:ids)
        GROUP BY used.batch_id, used.model, part.component
        HAVING sum(part.tokens) > 0
    ) AS used
    FULL JOIN (
        SELECT invoice.batch_id, line.model, line.component, sum(line.quantity) AS tokens
        FROM invoices AS invoice JOIN invoice_lines AS line ON line.invoice_id = invoice.id
        WHERE invoice.batch_id = ANY(:ids) AND line.component IS NOT NULL
        GROUP BY invoice.batch_id, line.model, line.component
    ) AS invoiced USING (batch_id, model, component)
    WHERE used.tokens IS DISTINCT FROM invoiced.tokens
"""

_INVOICES = """
    SELECT 'batch' AS kind, batch.id, 'number of invoices' AS what,
        (batch.status IN ('completed', 'expired', 'cancelled'))::int AS expected, count(invoice.id) AS found
    FROM batches AS batch LEFT JOIN invoices AS invoice ON invoice.batch_id = batch.id
    WHERE batch.id = ANY(:ids)
    GROUP BY batch.id
    HAVING count(invoice.id) <> (batch.status IN ('completed', 'expired', 'cancelled'))::int
"""

_USAGE_PRICES = """
    SELECT 'batch' AS kind, invoice.batch_id AS id, 'amount of ' || line.component || ' tokens of ' || line.model AS what,
        line.quantity * coalesce((batch.price_snapshot -> line.model ->> line.component)::numeric, 0) * 0.000001 AS expected,
        line.amount AS found
    FROM invoices AS invoice
    JOIN invoice_lines AS line ON line.invoice_id = invoice.id
    JOIN batches AS batch ON batch.id = invoice.batch_id
    WHERE invoice.batch_id = ANY(:ids) AND line.component IS NOT NULL
        AND line.amount <> line.quantity * coalesce((batch.price_snapshot -> line.model ->> line.component)::numeric, 0) * 0.000001
"""

_OWNERS = """
    SELECT 'batch' AS kind, batch.id, 'account and mode of the ' || other.what AS what,
        concat(batch.account_id, CASE WHEN batch.livemode THEN ' live' ELSE ' test' END) AS expected,
        concat(other.account_id, CASE WHEN other.livemode THEN ' live' ELSE ' test' END) AS found
    FROM (
        SELECT 'invoice', batch_id, account_id, livemode FROM invoices WHERE batch_id = ANY(:ids)
        UNION ALL SELECT 'input file', owned.id, file.account_id, file.livemode
            FROM batches AS owned JOIN files AS file ON file.id = owned.input_file_id WHERE owned.id = ANY(:ids)
    ) AS other (what, batch_id, account_id, livemode)
    JOIN batches AS batch ON batch.id = other.batch_id
    WHERE (other.account_id, other.livemode) <> (batch.account_id, batch.livemode)
"""

_STATEMENT_OWNERS = """
    SELECT 'batch' AS kind, batch.id, 'account and mode of the statement' AS what,
        concat(batch.account_id, CASE WHEN batch.livemode THEN ' live' ELSE ' test' END) AS expected,
        concat(statement.account_id, CASE WHEN statement.livemode THEN ' live' ELSE ' test' END) AS found
    FROM invoices AS statement
    JOIN invoice_lines AS line ON line.invoice_id = statement.id
    JOIN invoices AS invoice ON invoice.id = line.source_invoice_id
    JOIN batches AS batch ON batch.id = invoice.batch_id
    WHERE statement.id = ANY(:ids)
        AND (statement.account_id, statement.livemode) <> (batch.account_id, batch.livemode)
"""

_CREDITS = """
    SELECT 'batch' AS kind, credited.batch_id AS id, 'at most the invoice in credit notes' AS what,
        coalesce(invoice.total, 0) AS expected, credited.amount AS found
    FROM (
        SELECT batch_id, sum(amount) AS amount FROM credit_notes WHERE batch_id = ANY(:ids) GROUP BY batch_id
    ) AS credited
    LEFT JOIN invoices AS invoice ON invoice.batch_id = credited.batch_id
    WHERE credited.amount > coalesce(invoice.total, 0)
"""

# round() of a NUMERIC is half away from zero, as the payable amount is.
_STATEMENTS = """
    SELECT 'inv' AS kind, statement.id, sums.what, sums.expected, sums.found
    FROM invoices AS statement
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(total), 0) AS exact FROM invoices
        WHERE batch_id IS NOT NULL AND account_id = statement.account_id AND livemode = statement.livemode
            AND issued_at >= statement.month::timestamp AT TIME ZONE 'UTC'
            AND issued_at < (statement.month + interval '1 month') AT TIME ZONE 'UTC'
    ) AS invoiced
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(amount), 0) AS total,
            coalesce(sum(amount) FILTER (WHERE kind = 'batch' AND source_credit_id IS NULL), 0) AS exact,
            coalesce(sum(amount) FILTER (WHERE source_credit_id IS NOT NULL), 0) AS credited
        FROM invoice_lines WHERE invoice_id = statement.id
    ) AS line
    CROSS JOIN LATERAL (
        SELECT coalesce(-sum(note.amount), 0) AS exact
        FROM invoice_lines AS own JOIN credit_notes AS note ON note.id = own.source_credit_id
        WHERE own.invoice_id = statement.id AND note.statement_id = statement.id
            AND (note.account_id, note.livemode) = (statement.account_id, statement.livemode)
    ) AS credited
    CROSS JOIN LATERAL (VALUES
        ('invoices on the statement', invoiced.exact, line.exact),
        ('credit notes on the statement', credited.exact, line.credited),
        ('total of the statement', round(invoiced.exact + credited.exact, 2), statement.total),
        ('total of the statement, by its own lines', line.total, statement.total)
    ) AS sums (what, expected, found)
    WHERE statement.id = ANY(:ids) AND sums.expected <> sums.found
"""

BATCH_CHECKS = (_LINES, _SUMS, _INVOICES, _USAGE_PRICES, _OWNERS, _CREDITS)
STATEMENT_CHECKS = (_STATEMENT_OWNERS, _STATEMENTS)

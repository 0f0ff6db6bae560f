"""Rows of finished, sealed batches, spread over a year, as the product would have left them.

For databases of benchmarks alone: triggers and foreign keys are switched off while they are written.
"""

import time
from collections.abc import Callable

import psycopg

ACCOUNTS = 200
AT_ONCE = 50_000

# Identifiers of the n-th batch are UUIDv7s of its time. Every tenth batch is the first account's.
_PLAN = """
CREATE TEMPORARY TABLE plan AS
SELECT n, at, account_id, pg_temp.v7(at, %(batches)s || 'batch' || n) AS id, pg_temp.v7(at - interval '1 s', %(batches)s || 'input' || n) AS input_file_id,
    pg_temp.v7(at + interval '5 min', %(batches)s || 'output' || n) AS output_file_id, pg_temp.v7(at + interval '5 min', %(batches)s || 'invoice' || n) AS invoice_id
FROM (
    SELECT n, now() - interval '1 day' * %(days)s * (1 - n::float8 / %(batches)s) AS at,
        (%(accounts)s::uuid[])[1 + CASE WHEN n %% 10 = 0 THEN 0 ELSE n %% %(others)s END] AS account_id
    FROM generate_series(%(first)s::bigint, %(last)s) AS each (n)
) AS batch
"""
_V7 = """
CREATE OR REPLACE FUNCTION pg_temp.v7(at timestamptz, salt text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (left(replace(lowest_id(at)::text, '-', ''), 12) || '7' || substr(md5(salt), 1, 3) || '8' || substr(md5(salt), 4, 15))::uuid
$$
"""
# Tokens of line n: 80 + n % 50 and 60 + n % 90.
_ROWS = [
    """
    INSERT INTO files (id, account_id, livemode, purpose, filename, bytes, sha256, created_at, expires_at)
    SELECT input_file_id, account_id, false, 'batch', 'requests-' || n || '.jsonl', 300 * %(lines)s, sha256(n::text::bytea), at,
        now() + interval '1 year' FROM plan
    """,
    """
    INSERT INTO files (id, account_id, livemode, purpose, filename, bytes, sha256, stored_bytes, batch_id, part, created_at, expires_at)
    SELECT output_file_id, account_id, false, 'batch_output', 'output.jsonl', 745 * %(lines)s, sha256(n::text::bytea), 200 * %(lines)s,
        id, 'output', at, now() + interval '1 year' FROM plan
    """,
    """
    INSERT INTO batches (id, account_id, livemode, endpoint, completion_window, status, input_file_id, output_file_id, model,
        metadata, price_snapshot, discount_rate, enqueued_tokens, total, completed, failed, cancelled, expired, input_tokens,
        output_tokens, created_at, expires_at, in_progress_at, finalizing_at, completed_at, sealed_at)
    SELECT id, account_id, false, '/v1/chat/completions', '24h', 'completed', input_file_id, output_file_id, 'mistral-small-3-1',
        '{"job":"nightly"}', '{"mistral-small-3-1":{"input":"0.02","output":"0.04"}}', 0.5, 100 * %(lines)s, %(lines)s, %(lines)s,
        0, 0, 0, %(read)s, %(written)s, at, at + interval '24 h', at, at + interval '5 min', at + interval '5 min', at + interval '6 min'
    FROM plan
    """,
    """
    INSERT INTO tasks (batch_id, seq, model, state, lines, line_index, fence, attempts, completed, input_tokens, output_tokens)
    SELECT id, 0, 'mistral-small-3-1', 'done', %(lines)s, decode(repeat('00', 16 * %(lines)s::int), 'hex'), 1, 1, %(lines)s, %(read)s,
        %(written)s FROM plan
    """,
    """
    INSERT INTO sealed_lines (batch_id, first_line, lines, models, status_codes, error_codes, flags, input_tokens, cached_tokens,
        output_tokens, reasoning_tokens)
    SELECT id, 1, %(lines)s, array_fill('mistral-small-3-1'::text, size), array_fill(200::smallint, size), array_fill(NULL::text, size),
        array_fill(NULL::text, size), read, array_fill(0::bigint, size), written, array_fill(0::bigint, size)
    FROM plan, (
        SELECT ARRAY[%(lines)s::int] AS size, array_agg(80 + n %% 50) AS read, array_agg(60 + n %% 90) AS written
        FROM generate_series(1, %(lines)s::bigint) AS line (n)
    ) AS line
    """,
    """
    INSERT INTO invoices (id, account_id, livemode, batch_id, currency, total, issued_at)
    SELECT invoice_id, account_id, false, id, 'USD', (%(read)s * 0.02 + %(written)s * 0.04) * 0.000001 * 0.5, at + interval '5 min'
    FROM plan
    """,
    """
    INSERT INTO invoice_lines (invoice_id, position, kind, description, model, component, quantity, unit_price, amount)
    SELECT invoice_id, line.* FROM plan CROSS JOIN LATERAL (VALUES
        (1, 'usage', 'input tokens', 'mistral-small-3-1', 'input', %(read)s, 0.02, %(read)s * 0.02 * 0.000001),
        (2, 'usage', 'output tokens', 'mistral-small-3-1', 'output', %(written)s, 0.04, %(written)s * 0.04 * 0.000001),
        (3, 'discount', 'Batch discount', NULL, NULL, NULL, 0.5, -(%(read)s * 0.02 + %(written)s * 0.04) * 0.000001 * 0.5)
    ) AS line
    """,
    """
    INSERT INTO audit_log (at, actor, action, object_id, account_id, livemode, after)
    SELECT at, 'system', 'invoice.created', 'inv_' || replace(invoice_id::text, '-', ''), account_id, false, '{"currency":"USD"}'
    FROM plan
    """,
]
_TALLY = """
INSERT INTO account_tallies (account_id, livemode, name, amount)
SELECT account_id, livemode, each.name, sum(each.amount)
FROM files, LATERAL (VALUES ('files', 1), ('file_bytes', bytes)) AS each (name, amount)
WHERE deleted_at IS NULL GROUP BY account_id, livemode, each.name
ON CONFLICT (account_id, livemode, name) DO UPDATE SET amount = excluded.amount
"""


def fill(
    connection: psycopg.Connection,
    batches: int,
    lines: int,
    told: Callable[[str], None],
    *,
    days: float = 364,
) -> None:
    """Insert finished batches of `lines` lines each, made during the last `days` days.

    `connection` is the owner's, in autocommit. A second call adds batches of its own.
    """
    for setting in ("session_replication_role = replica", "synchronous_commit = off"):
        connection.execute(f"SET {setting}".encode())
    connection.execute(_V7.encode())
    connection.execute(
        "INSERT INTO accounts (id, name) SELECT pg_temp.v7(now(), 'account' || n), 'account-' || n"
        " FROM generate_series(2, %s) AS each (n) ON CONFLICT DO NOTHING",
        [ACCOUNTS],
    )
    accounts = [
        id for (id,) in connection.execute("SELECT id FROM accounts ORDER BY name <> 'default'")
    ]
    read = sum(80 + n % 50 for n in range(1, lines + 1))
    written = sum(60 + n % 90 for n in range(1, lines + 1))
    values = {
        "batches": batches,
        "days": days,
        "lines": lines,
        "accounts": accounts,
        "others": len(accounts),
        "read": read,
        "written": written,
    }
    for first in range(0, batches, AT_ONCE):
        begun = time.monotonic()
        last = min(first + AT_ONCE, batches) - 1
        connection.execute(_PLAN.encode(), {**values, "first": first, "last": last})
        for statement in _ROWS:
            connection.execute(statement.encode(), values)
        connection.execute("DROP TABLE plan")
        told(f"{last + 1:,} of {batches:,} batches, {time.monotonic() - begun:.0f} s")
    connection.execute(_TALLY.encode())
    connection.execute("VACUUM ANALYZE")

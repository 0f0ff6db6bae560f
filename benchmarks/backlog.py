"""A backlog: batches in progress whose tasks all wait, made in the database itself, by the million
in seconds.
"""

from sqlalchemy import text
from sqlalchemy.orm import Session

CHAT_MODEL = "mistral-small-3-1"
LINES = 1
# Numbers as ids: in their order, and the same in every run.
_ID = "lpad(to_hex({}), 32, '0')::uuid"
_FILL = f"""
WITH accounts AS (
    INSERT INTO accounts (id, name, virtual_time) SELECT {_ID.format("n")}, 'account-' || n, n FROM generate_series(1, CAST(:accounts AS int)) n
), file AS (
    INSERT INTO files (id, account_id, livemode, purpose, filename, bytes)
    SELECT {_ID.format("n")}, {_ID.format("n")}, false, 'batch', 'input.jsonl', 0 FROM generate_series(1, CAST(:accounts AS int)) n
), batches AS (
    INSERT INTO batches (id, account_id, livemode, endpoint, completion_window, status, input_file_id, model, price_snapshot, discount_rate,
                         expires_at)
    SELECT {_ID.format("n")}, {_ID.format("1 + n % CAST(:working AS int)")}, false, '/v1/chat/completions', '24h', 'in_progress',
           {_ID.format("1 + n % CAST(:working AS int)")}, :model, '{{}}', 0.5, now() + interval '24 hours' + n * interval '1 millisecond'
    FROM generate_series(1, CAST(:batches AS int)) n
)
INSERT INTO tasks (batch_id, seq, model, lines, line_index)
SELECT {_ID.format("1 + n / CAST(:size AS int)")}, n % CAST(:size AS int) * {LINES}, :model, {LINES}, decode(repeat('00', 16 * {LINES}), 'hex')
FROM generate_series(0, CAST(:batches AS int) * CAST(:size AS int) - 1) n
"""


def fill(session: Session, *, batches: int, tasks: int, accounts: int, idle: int = 0) -> None:
    """Fill an empty database with batches of `tasks` tasks each.

    The batches belong to `accounts` accounts in turn; `idle` more accounts have none.
    """
    values = {
        "accounts": accounts + idle,
        "working": accounts,
        "batches": batches,
        "size": tasks,
        "model": CHAT_MODEL,
    }
    session.execute(text(_FILL), values)
    session.execute(text("ANALYZE"))

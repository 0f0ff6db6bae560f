"""Indexes that a migration builds while services use the table."""

from alembic import op
from sqlalchemy import text


def build(name: str, on: str, *, is_unique: bool = False) -> None:
    """Build an index on `table (column, …) WHERE …`, outside of a transaction.

    What the migration did before is committed, and must bear being repeated. The build waits for
    older transactions and blocks none; with millions of rows it lasts seconds. An interrupted one
    leaves an invalid index behind, which the next attempt replaces.
    """
    lock_timeout = op.get_bind().scalar(text("SHOW lock_timeout"))
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        kind = "UNIQUE INDEX" if is_unique else "INDEX"
        op.execute(f"CREATE {kind} CONCURRENTLY {name} ON {on}")
        op.execute(f"SET lock_timeout = '{lock_timeout}'")

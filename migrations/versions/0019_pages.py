"""indexes of pages: statement lines by their invoice, which replaces a foreign key that took a third
of the time of issuing a statement, and runs by state
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

KEY = "fk_invoice_lines_source_invoice_id"
LINES = "ix_invoice_lines_source_invoice_id"
RUNS = "ix_schedule_runs_schedule_id_state_id"


def upgrade() -> None:
    # First, so that a retry after a lock timeout builds no index again. The block below commits it.
    op.execute(f"ALTER TABLE invoice_lines DROP CONSTRAINT IF EXISTS {KEY}")
    # Outside of a transaction, so that nobody waits: it lasts seconds with millions of rows. An
    # interrupted build leaves an invalid index behind, which the next attempt replaces.
    lock_timeout = op.get_bind().scalar(sa.text("SHOW lock_timeout"))
    with op.get_context().autocommit_block():
        # It waits for transactions that are older, and blocks none.
        op.execute("SET lock_timeout = 0")
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {LINES}")
        op.execute(
            f"CREATE UNIQUE INDEX CONCURRENTLY {LINES} ON invoice_lines (source_invoice_id)"
            " WHERE source_invoice_id IS NOT NULL"
        )
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {RUNS}")
        op.execute(f"CREATE INDEX CONCURRENTLY {RUNS} ON schedule_runs (schedule_id, state, id)")
        op.execute(f"SET lock_timeout = '{lock_timeout}'")


def downgrade() -> None:
    op.drop_index(RUNS, table_name="schedule_runs")
    op.create_foreign_key(op.f(KEY), "invoice_lines", "invoices", ["source_invoice_id"], ["id"])
    op.drop_index(LINES, table_name="invoice_lines")

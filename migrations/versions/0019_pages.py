"""indexes of pages: statement lines by their invoice, which replaces a foreign key that took a third
of the time of issuing a statement, and runs by state
"""

from alembic import op

from xalen_batch.migrate import indexes

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

KEY = "fk_invoice_lines_source_invoice_id"
LINES = "ix_invoice_lines_source_invoice_id"
RUNS = "ix_schedule_runs_schedule_id_state_id"


def upgrade() -> None:
    # First, so that a retry after a lock timeout builds no index again, which commits this.
    op.execute(f"ALTER TABLE invoice_lines DROP CONSTRAINT IF EXISTS {KEY}")
    indexes.build(
        LINES,
        "invoice_lines (source_invoice_id) WHERE source_invoice_id IS NOT NULL",
        is_unique=True,
    )
    indexes.build(RUNS, "schedule_runs (schedule_id, state, id)")


def downgrade() -> None:
    op.drop_index(RUNS, table_name="schedule_runs")
    op.create_foreign_key(op.f(KEY), "invoice_lines", "invoices", ["source_invoice_id"], ["id"])
    op.drop_index(LINES, table_name="invoice_lines")

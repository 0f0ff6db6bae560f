"""live calls: ledgers that they are recorded in, and batches of one queued call"""

import sqlalchemy as sa
from alembic import op

from xalen_batch.migrate import indexes

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

INDEX = "uq_batches_ledger"


def upgrade() -> None:
    # A repeated attempt finds the column, as building the index commits what was done before.
    op.execute("ALTER TABLE batches ADD COLUMN IF NOT EXISTS ledger text")
    op.execute("ALTER TABLE batches ADD COLUMN IF NOT EXISTS call text")
    op.alter_column("batches", "input_file_id", existing_type=sa.Uuid(), nullable=True)
    indexes.build(
        INDEX,
        "batches (account_id, livemode, ledger) WHERE ledger IS NOT NULL",
        is_unique=True,
    )


def downgrade() -> None:
    op.drop_index(INDEX, table_name="batches")
    # Ledgers stay: they have invoices. The version before never reads the column.
    op.drop_column("batches", "ledger")
    op.drop_column("batches", "call")

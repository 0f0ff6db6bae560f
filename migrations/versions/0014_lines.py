"""lines: escaped line breaks in results, counts of lines that never ran, and what a batch does with
invalid lines
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# All columns are added without a rewrite or a scan of their table, and processes of the version
# before write rows without them.


def upgrade() -> None:
    op.add_column("results", sa.Column("is_escaped", sa.Boolean(), nullable=True))
    op.add_column("batches", sa.Column("cancelled", sa.BigInteger(), nullable=True))
    op.add_column("batches", sa.Column("expired", sa.BigInteger(), nullable=True))
    op.add_column(
        "batches",
        sa.Column("on_invalid", sa.Text(), server_default=sa.text("'fail'"), nullable=False),
    )


def downgrade() -> None:
    op.drop_column("batches", "on_invalid")
    op.drop_column("batches", "expired")
    op.drop_column("batches", "cancelled")
    op.drop_column("results", "is_escaped")

"""sums on tasks for the invoice: the end of a batch summed up all of its results"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

# Constant defaults, so no row is rewritten. Workers of the version before advance tasks without
# these columns; `summed` then stays below the number of results.
ZEROS = (
    ("summed", sa.BigInteger()),
    ("charged", sa.Numeric()),
    ("counted_input_tokens", sa.BigInteger()),
    ("counted_output_tokens", sa.BigInteger()),
)


def upgrade() -> None:
    for name, kind in ZEROS:
        op.add_column("tasks", sa.Column(name, kind, server_default=sa.text("'0'"), nullable=False))
    op.add_column("tasks", sa.Column("not_billed", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("tasks", "not_billed")
    for name, _ in reversed(ZEROS):
        op.drop_column("tasks", name)

"""batches: how many of the billed tokens we counted ourselves; null for batches that ended before
this
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

COLUMNS = ("counted_input_tokens", "counted_output_tokens")


def upgrade() -> None:
    # Nullable and without a default: no row is rewritten, and older processes insert without them.
    for name in COLUMNS:
        op.add_column("batches", sa.Column(name, sa.BigInteger(), nullable=True))


def downgrade() -> None:
    for name in COLUMNS:
        op.drop_column("batches", name)

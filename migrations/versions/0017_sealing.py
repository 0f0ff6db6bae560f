"""sealing: the answers of an ended batch become objects, and its charges columns"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from xalen_batch.migrate import indexes

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

INDEX = "ix_batches_unsealed"


def upgrade() -> None:
    # IF NOT EXISTS: building the index commits this, and an attempt that fails there is repeated.
    op.execute("ALTER TABLE batches ADD COLUMN IF NOT EXISTS sealed_at timestamptz")
    op.execute("ALTER TABLE files ADD COLUMN IF NOT EXISTS stored_bytes bigint")
    indexes.build(INDEX, "batches (id) WHERE sealed_at IS NULL AND status <> 'failed'")
    op.create_table(
        "sealed_lines",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("first_line", sa.BigInteger(), nullable=False),
        sa.Column("lines", sa.BigInteger(), nullable=False),
        sa.Column("line_nos", postgresql.ARRAY(sa.BigInteger()), nullable=True),
        sa.Column("models", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("status_codes", postgresql.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column("error_codes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("flags", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("input_tokens", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("cached_tokens", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("output_tokens", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("reasoning_tokens", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("amounts", postgresql.ARRAY(sa.Numeric()), nullable=True),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_sealed_lines_batch_id")
        ),
        sa.PrimaryKeyConstraint("batch_id", "first_line", name=op.f("pk_sealed_lines")),
    )


def downgrade() -> None:
    op.drop_index(INDEX, table_name="batches")
    op.drop_table("sealed_lines")
    op.drop_column("files", "stored_bytes")
    op.drop_column("batches", "sealed_at")

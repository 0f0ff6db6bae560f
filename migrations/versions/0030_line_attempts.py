"""line_attempts and lost_leases: the failed attempts at lines"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "line_attempts",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("line_no", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("attempts", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "line_no", name=op.f("pk_line_attempts")),
    )
    op.create_table(
        "lost_leases",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column(
            "lost_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("line_nos", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "seq", "fence", name=op.f("pk_lost_leases")),
    )


def downgrade() -> None:
    op.drop_table("lost_leases")
    op.drop_table("line_attempts")

"""erasures and waits: deleted output files whose answers are still erased in steps, and what each
worker waits for
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "erasures",
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.Column("line_no", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_erasures_file_id_files")),
        sa.PrimaryKeyConstraint("file_id", name=op.f("pk_erasures")),
    )
    op.add_column("workers", sa.Column("waits", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "waits")
    op.drop_table("erasures")

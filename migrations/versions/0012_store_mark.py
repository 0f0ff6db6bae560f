"""store mark: which folder of input files belongs to this database, and what each worker sees"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "store_mark",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("placed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_store_mark")),
    )
    op.execute("INSERT INTO store_mark DEFAULT VALUES")
    op.add_column("workers", sa.Column("store", sa.Uuid(), nullable=True))
    op.add_column("workers", sa.Column("catalog", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "catalog")
    op.drop_column("workers", "store")
    op.drop_table("store_mark")

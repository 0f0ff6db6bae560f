"""message batches: their number of requests before validation, and the time of their deletion"""

from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE batches ADD COLUMN requests bigint")
    op.execute("ALTER TABLE batches ADD COLUMN deleted_at timestamptz")


def downgrade() -> None:
    op.drop_column("batches", "requests")
    op.drop_column("batches", "deleted_at")

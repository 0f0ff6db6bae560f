"""results: no foreign key, whose check of every row cost as much as writing it"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_constraint("fk_results_batch_id", "results", type_="foreignkey")


def downgrade() -> None:
    op.create_foreign_key("fk_results_batch_id", "results", "batches", ["batch_id"], ["id"])

"""tasks: where the lines are is stored as it is; compressing it cost more than writing it, at each
claim that cuts a task too
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE tasks ALTER COLUMN line_index SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.execute("ALTER TABLE tasks ALTER COLUMN line_index SET STORAGE EXTENDED")

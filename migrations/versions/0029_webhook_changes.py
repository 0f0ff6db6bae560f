"""webhooks: the time of their last change"""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Null for webhooks of before, and for those that an API of the version before changes.
    op.add_column(
        "webhook_endpoints", sa.Column("changed_at", sa.DateTime(timezone=True), nullable=True)
    )


def downgrade() -> None:
    op.drop_column("webhook_endpoints", "changed_at")

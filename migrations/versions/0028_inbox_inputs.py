"""inboxes: the inputs of embeddings in each request, by which a run is bounded"""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Requests that wait already, and those of an API of the version before, count as none.
    op.add_column(
        "inbox_requests", sa.Column("inputs", sa.BigInteger(), server_default="0", nullable=False)
    )


def downgrade() -> None:
    op.drop_column("inbox_requests", "inputs")

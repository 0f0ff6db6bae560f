"""accounts: turns among the batches of one account, and accounts that are disabled"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

AUDITED = (
    "CREATE TRIGGER audited AFTER UPDATE OF {columns} ON accounts FOR EACH ROW EXECUTE FUNCTION"
    " write_audit('account', 'acct', 'name', {shown})"
)


def upgrade() -> None:
    op.add_column(
        "accounts",
        sa.Column("rotates_next", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.add_column(
        "accounts", sa.Column("rotated_deadline", sa.DateTime(timezone=True), nullable=True)
    )
    op.add_column("accounts", sa.Column("rotated_batch_id", sa.Uuid(), nullable=True))
    op.add_column("accounts", sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("DROP TRIGGER audited ON accounts")
    op.execute(
        AUDITED.format(
            columns="simulated_live, disabled_at", shown="'simulated_live', 'disabled_at'"
        )
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER audited ON accounts")
    op.drop_column("accounts", "disabled_at")
    op.drop_column("accounts", "rotated_batch_id")
    op.drop_column("accounts", "rotated_deadline")
    op.drop_column("accounts", "rotates_next")
    op.execute(AUDITED.format(columns="simulated_live", shown="'simulated_live'"))

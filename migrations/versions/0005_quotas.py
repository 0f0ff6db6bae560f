"""quotas: limits of an account, and what they are counted from"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

OPEN = sa.text("status IN ('validating', 'in_progress', 'finalizing', 'cancelling')")
KEPT = sa.text("deleted_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "account_quotas",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("most", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("most >= 0", name=op.f("ck_account_quotas_not_negative")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_account_quotas_account_id")
        ),
        sa.PrimaryKeyConstraint("account_id", "livemode", "name", name=op.f("pk_account_quotas")),
    )
    op.add_column(
        "batches", sa.Column("enqueued_tokens", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.create_index(
        "ix_batches_account_id_livemode_open",
        "batches",
        ["account_id", "livemode"],
        unique=False,
        postgresql_where=OPEN,
    )
    op.drop_index("ix_files_account_id_livemode_id", table_name="files", postgresql_where=KEPT)
    op.create_index(
        "ix_files_account_id_livemode_id",
        "files",
        ["account_id", "livemode", "id"],
        unique=False,
        postgresql_where=KEPT,
        postgresql_include=["bytes"],
    )


def downgrade() -> None:
    op.drop_index("ix_files_account_id_livemode_id", table_name="files", postgresql_where=KEPT)
    op.create_index(
        "ix_files_account_id_livemode_id",
        "files",
        ["account_id", "livemode", "id"],
        unique=False,
        postgresql_where=KEPT,
    )
    op.drop_index(
        "ix_batches_account_id_livemode_open", table_name="batches", postgresql_where=OPEN
    )
    op.drop_column("batches", "enqueued_tokens")
    op.drop_table("account_quotas")

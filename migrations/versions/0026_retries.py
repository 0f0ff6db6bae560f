"""retries: batches that run the failed lines of another batch again; and the pace of each batch"""

import sqlalchemy as sa
from alembic import op

from xalen_batch.migrate import indexes

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

INDEX = "ix_batches_retry_of"
KEY = "fk_batches_retry_of_account_id_livemode"


def upgrade() -> None:
    # A repeated attempt finds the columns, as building the index commits what was done before.
    op.execute("ALTER TABLE batches ADD COLUMN IF NOT EXISTS retry_of uuid")
    op.execute("ALTER TABLE batches ADD COLUMN IF NOT EXISTS retry_codes text[]")
    op.execute(f"ALTER TABLE batches DROP CONSTRAINT IF EXISTS {KEY}")
    # NOT VALID: no scan of the table under its lock. Every row has null.
    op.execute(
        f"ALTER TABLE batches ADD CONSTRAINT {KEY} FOREIGN KEY (retry_of, account_id, livemode)"
        " REFERENCES batches (id, account_id, livemode) NOT VALID"
    )
    indexes.build(INDEX, "batches (retry_of, id) WHERE retry_of IS NOT NULL")
    op.execute(f"ALTER TABLE batches VALIDATE CONSTRAINT {KEY}")
    op.create_table(
        "batch_paces",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("lines_per_second", sa.Float(), nullable=True),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("is_late", sa.Boolean(), nullable=False),
        sa.Column("at_risk_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_batch_paces_batch_id_batches")
        ),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("pk_batch_paces")),
        postgresql_with={"fillfactor": "50"},
    )


def downgrade() -> None:
    op.drop_table("batch_paces")
    op.drop_index(INDEX, table_name="batches")
    op.drop_constraint(KEY, "batches")
    op.drop_column("batches", "retry_codes")
    op.drop_column("batches", "retry_of")

"""credit notes, and their lines on statements"""

import sqlalchemy as sa
from alembic import op

from xalen_batch.migrate import indexes

revision = "0034"
down_revision = "0032"
branch_labels = None
depends_on = None

LINES = "ix_invoice_lines_source_credit_id"
COLUMNS = "id, account_id, livemode, batch_id, amount, share, reason, key, created_at"


def upgrade() -> None:
    # IF NOT EXISTS: the index is built in between, which commits this.
    op.execute("ALTER TABLE invoice_lines ADD COLUMN IF NOT EXISTS source_credit_id uuid")
    indexes.build(
        LINES,
        "invoice_lines (source_credit_id) WHERE source_credit_id IS NOT NULL",
        is_unique=True,
    )
    op.create_table(
        "credit_notes",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("amount", sa.Numeric(), nullable=False),
        sa.Column("share", sa.Numeric(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("statement_id", sa.Uuid(), nullable=True),
        sa.CheckConstraint("amount > 0", name=op.f("ck_credit_notes_amount")),
        sa.CheckConstraint("share > 0 AND share <= 1", name=op.f("ck_credit_notes_share")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_credit_notes_account_id")
        ),
        sa.ForeignKeyConstraint(
            ["batch_id", "account_id", "livemode"],
            ["batches.id", "batches.account_id", "batches.livemode"],
            name=op.f("fk_credit_notes_batch_id_account_id_livemode"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credit_notes")),
        sa.UniqueConstraint("batch_id", "key", name=op.f("uq_credit_notes_batch_id_key")),
    )
    op.create_index(
        "ix_credit_notes_account_id_livemode_id",
        "credit_notes",
        ["account_id", "livemode", "id"],
    )
    op.create_index(
        "ix_credit_notes_account_id_livemode_created_at",
        "credit_notes",
        ["account_id", "livemode", "created_at"],
    )
    op.create_index(
        "ix_credit_notes_open",
        "credit_notes",
        ["account_id", "livemode", "created_at"],
        postgresql_where=sa.text("statement_id IS NULL"),
    )
    refuse = "FOR EACH ROW EXECUTE FUNCTION refuse_change('a credit note never changes')"
    old, new = (
        ", ".join(f"{row}.{column}" for column in COLUMNS.split(", ")) for row in ("OLD", "NEW")
    )
    # The statement that it is on is written once.
    op.execute(
        "CREATE TRIGGER immutable BEFORE UPDATE ON credit_notes FOR EACH ROW WHEN"
        f" (OLD.statement_id IS NOT NULL OR ({old}) IS DISTINCT FROM ({new}))"
        " EXECUTE FUNCTION refuse_change('a credit note never changes')"
    )
    op.execute(f"CREATE TRIGGER immutable_delete BEFORE DELETE ON credit_notes {refuse}")
    op.execute(
        "CREATE TRIGGER audited AFTER INSERT OR DELETE ON credit_notes FOR EACH ROW EXECUTE"
        " FUNCTION write_audit('credit_note', 'cn', 'batch_id', 'amount', 'share', 'reason')"
    )


def downgrade() -> None:
    op.drop_table("credit_notes")
    op.drop_index(LINES, table_name="invoice_lines")
    op.drop_column("invoice_lines", "source_credit_id")

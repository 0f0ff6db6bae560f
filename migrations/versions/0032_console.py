"""console: the tokens of sessions and of links that sign in once"""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0030"
branch_labels = None
depends_on = None

AUDIT_SIGN_IN = """
CREATE FUNCTION audit_sign_in() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM audit('key.signed_in', public_id('key', NEW.key_id), NEW.account_id, NEW.livemode, NULL, jsonb_build_object('expires_at', NEW.expires_at));
    RETURN NULL;
END $$
"""
OWNER = ("key_id", "account_id", "livemode")


def upgrade() -> None:
    op.create_table(
        "console_tokens",
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("is_link", sa.Boolean(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_console_tokens")),
        sa.ForeignKeyConstraint(
            [*OWNER],
            [f"api_keys.{column}" for column in ("id", "account_id", "livemode")],
            name=op.f("fk_console_tokens_key_id_account_id_livemode"),
        ),
    )
    op.create_index(
        "ix_console_tokens_key_id_created_at", "console_tokens", ["key_id", "created_at"]
    )
    op.create_index("ix_console_tokens_expires_at", "console_tokens", ["expires_at"])
    op.execute(AUDIT_SIGN_IN)
    op.execute(
        "CREATE TRIGGER audited AFTER INSERT ON console_tokens FOR EACH ROW WHEN (NOT NEW.is_link)"
        " EXECUTE FUNCTION audit_sign_in()"
    )


def downgrade() -> None:
    op.drop_table("console_tokens")
    op.execute("DROP FUNCTION audit_sign_in()")

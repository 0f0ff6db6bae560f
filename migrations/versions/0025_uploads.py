"""uploads in parts"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

# SECURITY DEFINER: the serving role may not write tallies.
TALLY_UPLOAD = """
CREATE FUNCTION tally_upload() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    number bigint := 0;
    size bigint := 0;
    account uuid := coalesce(NEW.account_id, OLD.account_id);
    live boolean := coalesce(NEW.livemode, OLD.livemode);
BEGIN
    IF TG_OP <> 'INSERT' AND OLD.status = 'pending' THEN
        number := -1;
        size := -OLD.bytes;
    END IF;
    IF TG_OP <> 'DELETE' AND NEW.status = 'pending' THEN
        number := number + 1;
        size := size + NEW.bytes;
    END IF;
    IF number <> 0 THEN
        PERFORM tally(account, live, 'upload_bytes', size);
        PERFORM tally(account, live, 'uploads', number);
    END IF;
    RETURN NULL;
END $$
"""
# Not deferred: the transaction that completes an upload counts its file in its place.
TRIGGER = """
CREATE TRIGGER tallied AFTER INSERT OR UPDATE OF status OR DELETE ON uploads
FOR EACH ROW EXECUTE FUNCTION tally_upload()
"""


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("account_id", sa.Uuid(), sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("mime_type", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("expires_after", sa.BigInteger()),
        sa.Column("parts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("received", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("repeats", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("file_id", sa.Uuid()),
        sa.Column("order_sha256", sa.LargeBinary()),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("is_cleared", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(
            ["file_id", "account_id", "livemode"],
            ["files.id", "files.account_id", "files.livemode"],
        ),
        sa.CheckConstraint("bytes > 0", name="bytes"),
        sa.CheckConstraint("received <= bytes", name="received"),
    )
    op.create_index(
        "ix_uploads_uncleared",
        "uploads",
        ["expires_at", "id"],
        postgresql_where=sa.text("NOT is_cleared"),
    )
    op.create_index(
        "ix_uploads_cleared", "uploads", ["expires_at"], postgresql_where=sa.text("is_cleared")
    )
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("upload_id", sa.Uuid(), sa.ForeignKey("uploads.id"), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
    )
    op.create_index("ix_upload_parts_upload_id_sha256", "upload_parts", ["upload_id", "sha256"])
    op.execute(TALLY_UPLOAD)
    op.execute(TRIGGER)


def downgrade() -> None:
    op.drop_table("upload_parts")
    op.drop_table("uploads")
    op.execute("DROP FUNCTION tally_upload()")
    op.execute("DELETE FROM account_tallies WHERE name IN ('uploads', 'upload_bytes')")

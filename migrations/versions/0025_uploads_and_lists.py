"""uploads in parts, and indexes for lists of batches with filters"""

import sqlalchemy as sa
from alembic import op

from xalen_batch.migrate import indexes

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

LISTED = "WHERE ledger IS NULL AND call IS NULL"
INDEXES = {
    "ix_batches_listed": (
        f"batches (account_id, livemode, id) INCLUDE (status, model, endpoint, created_at) {LISTED}"
    ),
    "ix_batches_listed_by_status": (
        f"batches (account_id, livemode, status, id) INCLUDE (model, endpoint, created_at) {LISTED}"
    ),
}
# A hash for each pair of a batch's metadata. No batch changes its metadata.
PAIR = """
CREATE FUNCTION metadata_pair(key text, value text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT md5(length(key)::text || ':' || key || value)::uuid
$$
"""
NOTE = """
INSERT INTO batch_notes (account_id, livemode, pair, batch_id)
SELECT batch.account_id, batch.livemode, metadata_pair(key, value), batch.id
FROM {batches} AS batch, jsonb_each_text(batch.metadata)
WHERE batch.ledger IS NULL AND batch.call IS NULL
ON CONFLICT DO NOTHING
"""
NOTE_BATCH = f"""
CREATE FUNCTION note_batch() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    {NOTE.format(batches="(SELECT NEW.*)")};
    RETURN NULL;
END $$
"""
NOTED = """
CREATE TRIGGER noted AFTER INSERT ON batches FOR EACH ROW WHEN (NEW.metadata <> '{}')
EXECUTE FUNCTION note_batch()
"""
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
    # Before the indexes, whose building commits it: batches are noted while older ones are.
    if not op.get_bind().scalar(sa.text("SELECT to_regclass('batch_notes') IS NOT NULL")):
        op.create_table(
            "batch_notes",
            sa.Column("account_id", sa.Uuid(), primary_key=True),
            sa.Column("livemode", sa.Boolean(), primary_key=True),
            sa.Column("pair", sa.Uuid(), primary_key=True),
            sa.Column("batch_id", sa.Uuid(), primary_key=True),
        )
        op.execute(PAIR)
        op.execute(NOTE_BATCH)
        op.execute(NOTED)
    for name, on in INDEXES.items():
        indexes.build(name, on)
    op.execute(NOTE.format(batches="batches"))
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
    for name in INDEXES:
        op.drop_index(name, table_name="batches")
    op.execute("DROP TRIGGER noted ON batches")
    op.execute("DROP FUNCTION note_batch()")
    op.execute("DROP FUNCTION metadata_pair(text, text)")
    op.drop_table("batch_notes")
    op.drop_table("upload_parts")
    op.drop_table("uploads")
    op.execute("DROP FUNCTION tally_upload()")
    op.execute("DELETE FROM account_tallies WHERE name IN ('uploads', 'upload_bytes')")

"""retention: ended runs of schedules and entries of the audit log can be forgotten"""

from alembic import op

from xalen_batch.migrate import indexes

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

INDEX = "ix_consumed_objects_run_id"
REFUSE = "EXECUTE FUNCTION refuse_change('the audit log is only ever added to')"
# SECURITY DEFINER: the serving role may not delete entries. The trigger holds for the owner too.
FORGET_AUDIT = """
CREATE FUNCTION forget_audit(until timestamptz, most integer) RETURNS bigint LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    gone bigint;
BEGIN
    DELETE FROM audit_log WHERE id IN (
        SELECT id FROM audit_log WHERE at < least(until, now() - interval '90 days') ORDER BY at LIMIT most
        FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END $$
"""


def upgrade() -> None:
    indexes.build(INDEX, "consumed_objects (run_id) WHERE run_id IS NOT NULL")
    # An object stays known as taken when its run is forgotten.
    op.alter_column("consumed_objects", "run_id", nullable=True)
    op.execute("DROP TRIGGER append_only ON audit_log")
    op.execute(f"CREATE TRIGGER append_only BEFORE UPDATE ON audit_log FOR EACH ROW {REFUSE}")
    op.execute(
        "CREATE TRIGGER append_only_young BEFORE DELETE ON audit_log FOR EACH ROW"
        f" WHEN (OLD.at > now() - interval '90 days') {REFUSE}"
    )
    op.execute(FORGET_AUDIT)
    op.execute("REVOKE EXECUTE ON FUNCTION forget_audit(timestamptz, integer) FROM PUBLIC")


def downgrade() -> None:
    op.drop_index(INDEX, table_name="consumed_objects")
    op.execute("DROP FUNCTION forget_audit(timestamptz, integer)")
    op.execute("DROP TRIGGER append_only_young ON audit_log")
    op.execute("DROP TRIGGER append_only ON audit_log")
    op.execute(
        f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_log FOR EACH ROW {REFUSE}"
    )
    op.execute("DELETE FROM consumed_objects WHERE run_id IS NULL")
    op.alter_column("consumed_objects", "run_id", nullable=False)

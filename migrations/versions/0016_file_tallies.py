"""tallies of files, and an index for lists of files by purpose: an upload added up every file of
its account
"""

from alembic import op

from xalen_batch.migrate import indexes

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

# `files` counts those that are not deleted, `file_bytes` their bytes. SECURITY DEFINER from the
# start: the services of the version before go on inserting files, and may not write tallies.
TALLY_FILE = """
CREATE FUNCTION tally_file() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    number bigint := 0;
    size bigint := 0;
    account uuid := coalesce(NEW.account_id, OLD.account_id);
    live boolean := coalesce(NEW.livemode, OLD.livemode);
BEGIN
    IF TG_OP <> 'INSERT' AND OLD.deleted_at IS NULL THEN
        number := -1;
        size := -OLD.bytes;
    END IF;
    IF TG_OP <> 'DELETE' AND NEW.deleted_at IS NULL THEN
        number := number + 1;
        size := size + NEW.bytes;
    END IF;
    IF size <> 0 THEN
        PERFORM tally(account, live, 'file_bytes', size);
    END IF;
    IF number <> 0 THEN
        PERFORM tally(account, live, 'files', number);
    END IF;
    RETURN NULL;
END $$
"""
# Deferred: the transaction that ends a batch inserts its files first and its invoice last, and
# uploads of the account would wait for the tally meanwhile.
TRIGGER = """
CREATE CONSTRAINT TRIGGER tallied AFTER INSERT OR UPDATE OF bytes, deleted_at OR DELETE ON files
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION tally_file()
"""
# CREATE TRIGGER has locked the table by then, which keeps writers out until the counts are in.
COUNT = """
INSERT INTO account_tallies (account_id, livemode, name, amount)
SELECT account_id, livemode, each.name, sum(each.amount)
FROM files, LATERAL (VALUES ('files', 1), ('file_bytes', bytes)) AS each (name, amount)
WHERE deleted_at IS NULL
GROUP BY account_id, livemode, each.name
"""
INDEX = "ix_files_account_id_livemode_purpose_id"


def upgrade() -> None:
    indexes.build(INDEX, "files (account_id, livemode, purpose, id) WHERE deleted_at IS NULL")
    op.execute(TALLY_FILE)
    op.execute(TRIGGER)
    op.execute(COUNT)


def downgrade() -> None:
    op.execute("DROP TRIGGER tallied ON files")
    op.execute("DROP FUNCTION tally_file()")
    op.execute("DELETE FROM account_tallies WHERE name IN ('files', 'file_bytes')")
    op.drop_index(INDEX, table_name="files")

"""tallies and more of the audit log: what has too many rows to count is added up by triggers;
limits, accounts, files and answers leave a trace
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TALLY = """
CREATE FUNCTION tally(account uuid, live boolean, what text, more bigint) RETURNS void LANGUAGE sql AS $$
    INSERT INTO account_tallies AS kept (account_id, livemode, name, amount) VALUES (account, live, what, more)
    ON CONFLICT (account_id, livemode, name) DO UPDATE SET amount = kept.amount + excluded.amount
$$
"""

# TG_ARGV[0]: 1 for inserted rows, -1 for deleted ones. One update of each tally for a statement of
# any number of rows, sorted, so that two transactions lock the tallies of several accounts in one
# order.
TALLY_INBOX = """
CREATE FUNCTION tally_inbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tally(account_id, livemode, name, TG_ARGV[0]::bigint * amount) FROM (
        SELECT account_id, livemode, each.name, sum(each.amount)::bigint AS amount
        FROM moved JOIN schedules ON schedules.id = moved.schedule_id,
             LATERAL (VALUES ('inbox_bytes', octet_length(line) + 1), ('inbox_requests', 1)) AS each (name, amount)
        GROUP BY account_id, livemode, each.name ORDER BY account_id, livemode, each.name
    ) AS sums;
    RETURN NULL;
END $$
"""

TALLY_KEY = """
CREATE FUNCTION tally_idempotency_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tally(NEW.account_id, NEW.livemode, 'idempotency_keys', 1);
    RETURN NULL;
END $$
"""
TALLY_FORGOTTEN_KEYS = """
CREATE FUNCTION tally_forgotten_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tally(account_id, livemode, 'idempotency_keys', -number) FROM (
        SELECT account_id, livemode, count(*) AS number FROM moved GROUP BY account_id, livemode ORDER BY account_id, livemode
    ) AS counts;
    RETURN NULL;
END $$
"""

# CREATE TRIGGER has locked the tables by then, which keeps writers out until the counts are in.
COUNT_INBOX = """
INSERT INTO account_tallies (account_id, livemode, name, amount)
SELECT account_id, livemode, each.name, sum(each.amount)
FROM inbox_requests JOIN schedules ON schedules.id = inbox_requests.schedule_id,
     LATERAL (VALUES ('inbox_bytes', octet_length(line) + 1), ('inbox_requests', 1)) AS each (name, amount)
GROUP BY account_id, livemode, each.name
"""
COUNT_KEYS = """
INSERT INTO account_tallies (account_id, livemode, name, amount)
SELECT account_id, livemode, 'idempotency_keys', count(*) FROM idempotency_keys GROUP BY account_id, livemode
"""

TRIGGERS = [
    (
        "CREATE TRIGGER tallied_new AFTER INSERT ON inbox_requests REFERENCING NEW TABLE AS moved"
        " FOR EACH STATEMENT EXECUTE FUNCTION tally_inbox('1')"
    ),
    (
        "CREATE TRIGGER tallied_old AFTER DELETE ON inbox_requests REFERENCING OLD TABLE AS moved"
        " FOR EACH STATEMENT EXECUTE FUNCTION tally_inbox('-1')"
    ),
    # Deferred: a request claims its key first and commits last, and would keep the account's other
    # requests waiting for the tally meanwhile.
    (
        "CREATE CONSTRAINT TRIGGER tallied_new AFTER INSERT ON idempotency_keys DEFERRABLE"
        " INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION tally_idempotency_key()"
    ),
    (
        "CREATE TRIGGER tallied_old AFTER DELETE ON idempotency_keys REFERENCING OLD TABLE AS moved"
        " FOR EACH STATEMENT EXECUTE FUNCTION tally_forgotten_keys()"
    ),
]

# The public id of a row, as `ids.render` writes it.
PUBLIC_ID = """
CREATE FUNCTION public_id(kind text, id uuid) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT kind || CASE kind WHEN 'file' THEN '-' ELSE '_' END || replace(id::text, '-', '')
$$
"""
AUDIT = """
CREATE FUNCTION audit(act text, object text, account uuid, live boolean, was jsonb, became jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO audit_log (actor, action, object_id, account_id, livemode, before, after) VALUES (
        coalesce(nullif(current_setting('xalen.actor', true), ''), 'database:' || session_user), act, object, account, live, was, became
    )
$$
"""
# A limit is a quota of an account and mode: {quota: number, or "none"}; null where the settings'
# limit holds.
AUDIT_LIMIT = """
CREATE FUNCTION audit_limit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed account_quotas := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
    was jsonb := CASE WHEN TG_OP <> 'INSERT' THEN jsonb_build_object(OLD.name, coalesce(OLD.most::text, 'none')) END;
    became jsonb := CASE WHEN TG_OP <> 'DELETE' THEN jsonb_build_object(NEW.name, coalesce(NEW.most::text, 'none')) END;
BEGIN
    IF was IS DISTINCT FROM became THEN
        PERFORM audit('limit.changed', public_id('acct', changed.account_id), changed.account_id, changed.livemode, was, became);
    END IF;
    RETURN NULL;
END $$
"""
AUDIT_FILE = """
CREATE FUNCTION audit_file() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM audit('file.deleted', public_id('file', OLD.id), OLD.account_id, OLD.livemode, jsonb_strip_nulls(jsonb_build_object(
        'purpose', OLD.purpose, 'bytes', OLD.bytes::text, 'batch_id', public_id('batch', OLD.batch_id), 'expires_at', OLD.expires_at
    )), NULL);
    RETURN NULL;
END $$
"""
AUDIT_CANCEL = """
CREATE FUNCTION audit_cancel() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM audit(
        'batch.cancelled', public_id('batch', NEW.id), NEW.account_id, NEW.livemode,
        jsonb_build_object('status', OLD.status), jsonb_build_object('status', NEW.status)
    );
    RETURN NULL;
END $$
"""
# A statement of any number of lines is one entry for each batch: how many answers it erased.
AUDIT_ANSWERS = """
CREATE FUNCTION audit_answers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        PERFORM audit('answers.erased', public_id('batch', batch_id), account_id, livemode, jsonb_build_object('lines', lines::text), NULL)
        FROM (
            SELECT was.batch_id, count(*) AS lines
            FROM was JOIN became USING (batch_id, line_no) WHERE was.body IS NOT NULL AND became.body IS NULL GROUP BY was.batch_id
        ) AS erased LEFT JOIN batches ON batches.id = batch_id ORDER BY batch_id;
    ELSE
        PERFORM audit('answers.erased', public_id('batch', batch_id), account_id, livemode, jsonb_build_object('lines', lines::text), NULL)
        FROM (SELECT batch_id, count(*) AS lines FROM was GROUP BY batch_id) AS erased LEFT JOIN batches ON batches.id = batch_id ORDER BY batch_id;
    END IF;
    RETURN NULL;
END $$
"""
AUDITED = [
    (
        "CREATE TRIGGER audited AFTER INSERT OR DELETE OR UPDATE ON account_quotas FOR EACH ROW"
        " EXECUTE FUNCTION audit_limit()"
    ),
    (
        "CREATE TRIGGER audited_row AFTER INSERT OR DELETE OR UPDATE OF name, weight ON accounts"
        " FOR EACH ROW EXECUTE FUNCTION write_audit('account', 'acct', 'name', 'weight')"
    ),
    (
        "CREATE TRIGGER audited AFTER UPDATE OF deleted_at ON files FOR EACH ROW WHEN"
        " (OLD.deleted_at IS NULL AND NEW.deleted_at IS NOT NULL) EXECUTE FUNCTION audit_file()"
    ),
    (
        "CREATE TRIGGER audited_whole AFTER DELETE ON files FOR EACH ROW WHEN (OLD.deleted_at IS"
        " NULL) EXECUTE FUNCTION audit_file()"
    ),
    (
        "CREATE TRIGGER audited AFTER UPDATE OF status ON batches FOR EACH ROW WHEN (NEW.status ="
        " 'cancelling' AND OLD.status <> 'cancelling') EXECUTE FUNCTION audit_cancel()"
    ),
    (
        "CREATE TRIGGER audited AFTER UPDATE ON results REFERENCING OLD TABLE AS was NEW TABLE AS"
        " became FOR EACH STATEMENT EXECUTE FUNCTION audit_answers()"
    ),
    (
        "CREATE TRIGGER audited_whole AFTER DELETE ON results REFERENCING OLD TABLE AS was FOR EACH"
        " STATEMENT EXECUTE FUNCTION audit_answers()"
    ),
]

FUNCTIONS = {
    "tally(uuid, boolean, text, bigint)": TALLY,
    "tally_inbox()": TALLY_INBOX,
    "tally_idempotency_key()": TALLY_KEY,
    "tally_forgotten_keys()": TALLY_FORGOTTEN_KEYS,
    "public_id(text, uuid)": PUBLIC_ID,
    "audit(text, text, uuid, boolean, jsonb, jsonb)": AUDIT,
    "audit_limit()": AUDIT_LIMIT,
    "audit_file()": AUDIT_FILE,
    "audit_cancel()": AUDIT_CANCEL,
    "audit_answers()": AUDIT_ANSWERS,
}


def upgrade() -> None:
    op.create_table(
        "account_tallies",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_account_tallies_account_id")
        ),
        sa.PrimaryKeyConstraint("account_id", "livemode", "name", name=op.f("pk_account_tallies")),
    )
    for function in FUNCTIONS.values():
        op.execute(function)
    for trigger in TRIGGERS:
        op.execute(trigger)
    op.execute(COUNT_INBOX)
    op.execute(COUNT_KEYS)
    # Last, as their locks on the busiest tables last until the commit.
    for trigger in AUDITED:
        op.execute(trigger)


def downgrade() -> None:
    for trigger in [*TRIGGERS, *AUDITED]:
        words = trigger.split()
        op.execute(
            f"DROP TRIGGER {words[words.index('TRIGGER') + 1]} ON {words[words.index('ON') + 1]}"
        )
    for signature in reversed(FUNCTIONS):
        op.execute(f"DROP FUNCTION {signature}")
    op.drop_table("account_tallies")

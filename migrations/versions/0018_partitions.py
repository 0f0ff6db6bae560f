"""partitions: the rows of a day's batches are a table, which goes when all of them are sealed"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

COLUMNS = """
    batch_id uuid NOT NULL,
    line_no bigint NOT NULL,
    input_tokens bigint NOT NULL DEFAULT 0,
    cached_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    reasoning_tokens bigint NOT NULL DEFAULT 0,
    ended_at timestamptz NOT NULL DEFAULT now(),
    status_code smallint,
    amount numeric,
    model text NOT NULL,
    custom_id text NOT NULL,
    flag text,
    error_code text,
    error_message text,
    body bytea,
    is_escaped boolean,
    CONSTRAINT ck_results_charged_iff_succeeded
        CHECK ((amount IS NOT NULL) = (status_code IS NOT NULL AND status_code < 300)),
    CONSTRAINT pk_results PRIMARY KEY (batch_id, line_no)
"""
TRIGGERS = [
    (
        "CREATE TRIGGER audited AFTER UPDATE ON results REFERENCING OLD TABLE AS was NEW TABLE AS"
        " became FOR EACH STATEMENT EXECUTE FUNCTION audit_answers()"
    ),
    (
        "CREATE TRIGGER audited_whole AFTER DELETE ON results REFERENCING OLD TABLE AS was FOR EACH"
        " STATEMENT EXECUTE FUNCTION audit_answers()"
    ),
]

# The lowest UUIDv7 of a time: its first 48 bits are milliseconds.
LOWEST_ID = """
CREATE FUNCTION lowest_id(at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$
"""
# SECURITY DEFINER: only the owner of a table may attach and drop its partitions. ATTACH lets others
# read and write meanwhile, which CREATE TABLE … PARTITION OF does not. False: the day has a
# partition, or the table of older rows covers it. Each role with SELECT on `results` gets it on the
# partition: pg_dump reads partitions one by one.
CREATE_DAY = """
CREATE FUNCTION create_results_day(day date) RETURNS boolean LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    name text := 'results_' || to_char(day, 'YYYYMMDD');
    reader record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('create_results_day'));
    IF to_regclass(name) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE results INCLUDING ALL)', name);
    EXECUTE format(
        'ALTER TABLE results ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name,
        lowest_id(day::timestamp AT TIME ZONE 'UTC'), lowest_id((day + 1)::timestamp AT TIME ZONE 'UTC')
    );
    FOR reader IN
        SELECT grantee::regrole AS role FROM pg_class, aclexplode(relacl)
        WHERE oid = 'results'::regclass AND privilege_type = 'SELECT' AND grantee NOT IN (0, relowner)
    LOOP
        EXECUTE format('GRANT SELECT ON %I TO %s', name, reader.role);
    END LOOP;
    RETURN true;
EXCEPTION WHEN invalid_object_definition THEN
    RETURN false;
END $$
"""
# Drops the oldest partition that ends by the given time and has no row of an unsealed batch, and
# returns its name. Null: no partition is that old and sealed, or another session kept its lock for
# half a second. DROP TABLE locks the parent first, and so does this function, to prevent a deadlock;
# under the lock it checks the batches again.
DROP_SEALED = """
CREATE FUNCTION drop_sealed_results(until timestamptz) RETURNS text LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '500ms' AS $$
DECLARE
    part record;
BEGIN
    FOR part IN
        SELECT child.relname AS name, bounds.until,
            coalesce(substring(bounds.text FROM 'FROM \\(''([0-9a-f-]+)''\\)')::uuid, lowest_id('epoch')) AS since
        FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid
        CROSS JOIN LATERAL pg_get_expr(child.relpartbound, child.oid) AS bound
        CROSS JOIN LATERAL (SELECT bound AS text, substring(bound FROM 'TO \\(''([0-9a-f-]+)''\\)')::uuid AS until) AS bounds
        WHERE inhparent = 'results'::regclass AND bounds.until <= lowest_id(drop_sealed_results.until)
        ORDER BY bounds.until
    LOOP
        CONTINUE WHEN EXISTS (
            SELECT FROM batches WHERE id >= part.since AND id < part.until AND sealed_at IS NULL AND status <> 'failed'
        );
        LOCK TABLE ONLY results IN ACCESS EXCLUSIVE MODE;
        IF EXISTS (
            SELECT FROM batches WHERE id >= part.since AND id < part.until AND sealed_at IS NULL AND status <> 'failed'
        ) THEN
            RETURN NULL;
        END IF;
        EXECUTE format('DROP TABLE %I', part.name);
        RETURN part.name;
    END LOOP;
    RETURN NULL;
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END $$
"""
# The privileges of the table before, so that services which run meanwhile keep theirs.
GRANTS = """
DO $$
DECLARE
    held record;
BEGIN
    FOR held IN
        SELECT privilege_type AS privilege, grantee::regrole AS role FROM pg_class, aclexplode(relacl)
        WHERE oid = '{older}'::regclass AND grantee <> relowner
        UNION ALL
        SELECT format('%s (%I)', privilege_type, attname), grantee::regrole FROM pg_attribute, aclexplode(attacl)
        WHERE attrelid = '{older}'::regclass
    LOOP
        EXECUTE format('GRANT %s ON results TO %s', held.privilege, held.role);
    END LOOP;
END $$
"""


def upgrade() -> None:
    connection = op.get_bind()
    # The days until then are one partition with all older rows, since services of the version before
    # insert rows until they end.
    day, bound = connection.execute(
        sa.text(
            "SELECT to_char(day, 'YYYYMMDD'), (lpad(to_hex(extract(epoch FROM day)::bigint * 1000),"
            " 12, '0') || repeat('0', 20))::uuid FROM (SELECT date_trunc('day', now() AT TIME ZONE"
            " 'UTC') + interval '2 days' AS day) AS bound"
        )
    ).one()
    older = f"results_before_{day}"
    lock_timeout = connection.scalar(sa.text("SHOW lock_timeout"))
    # A constraint that is known to hold saves ATTACH the scan under its lock. It is validated in a
    # transaction of its own, which keeps neither readers nor writers out.
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE results DROP CONSTRAINT IF EXISTS ck_results_older")
        op.execute(
            f"ALTER TABLE results ADD CONSTRAINT ck_results_older CHECK (batch_id < '{bound}')"
            " NOT VALID"
        )
        op.execute("SET lock_timeout = 0")
        op.execute("ALTER TABLE results VALIDATE CONSTRAINT ck_results_older")
        op.execute(f"SET lock_timeout = '{lock_timeout}'")
    for function in (LOWEST_ID, CREATE_DAY, DROP_SEALED):
        op.execute(function)
    for signature in ("create_results_day(date)", "drop_sealed_results(timestamptz)"):
        op.execute(f"REVOKE EXECUTE ON FUNCTION {signature} FROM PUBLIC")
    op.execute(f"ALTER TABLE results RENAME TO {older}")
    op.execute(f"ALTER TABLE {older} RENAME CONSTRAINT pk_results TO pk_{older}")
    for trigger in ("audited", "audited_whole"):
        op.execute(f"DROP TRIGGER {trigger} ON {older}")
    op.execute(f"CREATE TABLE results ({COLUMNS}) PARTITION BY RANGE (batch_id)")
    op.execute(
        f"ALTER TABLE results ATTACH PARTITION {older} FOR VALUES FROM (MINVALUE) TO ('{bound}')"
    )
    op.execute(f"ALTER TABLE {older} DROP CONSTRAINT ck_results_older")
    for trigger in TRIGGERS:
        op.execute(trigger)
    op.execute(GRANTS.format(older=older))


def downgrade() -> None:
    op.execute("ALTER TABLE results RENAME TO results_partitioned")
    op.execute("ALTER TABLE results_partitioned RENAME CONSTRAINT pk_results TO pk_partitioned")
    op.execute(f"CREATE TABLE results ({COLUMNS})")
    op.execute("INSERT INTO results SELECT * FROM results_partitioned")
    op.execute(GRANTS.format(older="results_partitioned"))
    op.execute("DROP TABLE results_partitioned")
    for trigger in TRIGGERS:
        op.execute(trigger)
    op.execute("DROP FUNCTION drop_sealed_results(timestamptz)")
    op.execute("DROP FUNCTION create_results_day(date)")
    op.execute("DROP FUNCTION lowest_id(timestamptz)")

"""security: the audit log, and foreign keys that keep accounts and modes apart"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# A row as it is logged: every field of a schedule's definition, and the columns that are named,
# numbers as text so that none loses a digit.
AUDIT_FIELDS = """
CREATE FUNCTION audit_fields(of jsonb, shown text[]) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(jsonb_object_agg(key, value), '{}')
    FROM jsonb_each(coalesce(of -> 'definition', '{}') || (
        SELECT coalesce(jsonb_object_agg(key, CASE jsonb_typeof(value) WHEN 'number' THEN to_jsonb(value #>> '{}') ELSE value END), '{}')
        FROM jsonb_each(of) WHERE key = ANY (shown)
    ))
    WHERE value <> 'null'
$$
"""

# What is in one and not the same in the other. A field of users' text shows that it is one, not
# what it says.
AUDIT_DIFFERENCE = """
CREATE FUNCTION audit_difference(of jsonb, other jsonb, shown text[]) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_object_agg(key, CASE WHEN key = ANY (shown) THEN value ELSE '"…"' END)
    FROM jsonb_each(of) WHERE value IS DISTINCT FROM other -> key
$$
"""

# Arguments: the kind of thing, the prefix of its public id, and the names of what is shown of it.
WRITE_AUDIT = """
CREATE FUNCTION write_audit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed jsonb := to_jsonb(CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END);
    was jsonb := CASE WHEN TG_OP = 'INSERT' THEN '{}' ELSE audit_fields(to_jsonb(OLD), TG_ARGV) END;
    became jsonb := CASE WHEN TG_OP = 'DELETE' THEN '{}' ELSE audit_fields(to_jsonb(NEW), TG_ARGV) END;
BEGIN
    IF was <> became THEN
        INSERT INTO audit_log (actor, action, object_id, account_id, livemode, before, after) VALUES (
            coalesce(nullif(current_setting('xalen.actor', true), ''), 'database:' || session_user),
            TG_ARGV[0] || CASE TG_OP WHEN 'INSERT' THEN '.created' WHEN 'UPDATE' THEN '.changed' ELSE '.deleted' END,
            TG_ARGV[1] || '_' || replace(changed ->> 'id', '-', ''),
            (changed ->> 'account_id')::uuid,
            (changed ->> 'livemode')::boolean,
            audit_difference(was, became, TG_ARGV),
            audit_difference(became, was, TG_ARGV)
        );
    END IF;
    RETURN NULL;
END $$
"""

# table: kind, prefix of its ids, columns whose change is one, and what is shown
AUDITED = {
    "api_keys": (
        "key",
        "key",
        ("name", "scopes", "expires_at", "revoked_at"),
        ("name", "scopes", "expires_at", "revoked_at", "rotated_from"),
    ),
    "prices": (
        "price",
        "price",
        ("valid_to",),
        ("model", "component", "usd_per_million", "valid_from", "valid_to"),
    ),
    "schedules": (
        "schedule",
        "sched",
        ("name", "definition", "status", "deleted_at"),
        (
            *(
                "name",
                "status",
                "deleted_at",
                "cron",
                "timezone",
                "starts_at",
                "ends_at",
                "jitter",
                "input_file_id",
                "template_file_id",
            ),
            *(
                "endpoint",
                "completion_window",
                "overlap",
                "misfire",
                "misfire_limit",
                "catch_up_window",
                "pause_on_failure",
            ),
        ),
    ),
    "invoices": (
        "invoice",
        "inv",
        ("total",),
        ("batch_id", "month", "schedule_name", "currency", "total"),
    ),
}

OWNER = ["account_id", "livemode"]
POINTED_AT = ("api_keys", "files", "schedules")
# (table, its column, the table it points at, the column behind that table's id): before and after
# this migration the first column is a foreign key to an id; now the rest must agree too.
POINTERS = [
    ("batches", "input_file_id", "files", OWNER),
    ("batches", "output_file_id", "files", OWNER),
    ("batches", "error_file_id", "files", OWNER),
    ("batches", "schedule_id", "schedules", OWNER),
    ("batches", "run_id", "schedule_runs", ["schedule_id"]),
    ("files", "batch_id", "batches", OWNER),
    ("schedules", "file_id", "files", OWNER),
    ("invoices", "schedule_id", "schedules", OWNER),
    ("inbox_requests", "run_id", "schedule_runs", ["schedule_id"]),
    ("consumed_objects", "run_id", "schedule_runs", ["schedule_id"]),
]


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("rotated_from", sa.Uuid(), nullable=True))
    op.create_unique_constraint(op.f("uq_api_keys_rotated_from"), "api_keys", ["rotated_from"])
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=True),
        sa.Column("livemode", sa.Boolean(), nullable=True),
        sa.Column("before", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("after", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index("ix_audit_log_at", "audit_log", ["at"], unique=False)
    for function in (AUDIT_FIELDS, AUDIT_DIFFERENCE, WRITE_AUDIT):
        op.execute(function)
    for table, (kind, prefix, columns, shown) in AUDITED.items():
        arguments = ", ".join(f"'{argument}'" for argument in (kind, prefix, *shown))
        op.execute(
            f"CREATE TRIGGER audited AFTER INSERT OR DELETE OR UPDATE OF {', '.join(columns)} ON"
            f" {table} FOR EACH ROW EXECUTE FUNCTION write_audit({arguments})"
        )
    refuse = "EXECUTE FUNCTION refuse_change('the audit log is only ever added to')"
    op.execute(
        f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_log FOR EACH ROW {refuse}"
    )
    op.execute(
        f"CREATE TRIGGER append_only_whole BEFORE TRUNCATE ON audit_log FOR EACH STATEMENT {refuse}"
    )

    for table in POINTED_AT:
        op.create_unique_constraint(
            op.f(f"uq_{table}_id_account_id_livemode"), table, ["id", *OWNER]
        )
    op.create_foreign_key(
        op.f("fk_api_keys_rotated_from_account_id_livemode"),
        "api_keys",
        "api_keys",
        ["rotated_from", *OWNER],
        ["id", *OWNER],
    )
    op.drop_index("ix_schedule_runs_schedule_id_id", table_name="schedule_runs")
    op.create_unique_constraint(
        op.f("uq_schedule_runs_schedule_id_id"), "schedule_runs", ["schedule_id", "id"]
    )
    for table, column, target, rest in POINTERS:
        op.drop_constraint(op.f(f"fk_{table}_{column}"), table, type_="foreignkey")
        op.create_foreign_key(
            op.f(f"fk_{table}_{column}_{'_'.join(rest)}"),
            table,
            target,
            [column, *rest],
            ["id", *rest],
        )


def downgrade() -> None:
    for table, column, target, rest in reversed(POINTERS):
        op.drop_constraint(op.f(f"fk_{table}_{column}_{'_'.join(rest)}"), table, type_="foreignkey")
        op.create_foreign_key(op.f(f"fk_{table}_{column}"), table, target, [column], ["id"])
    op.drop_constraint(op.f("uq_schedule_runs_schedule_id_id"), "schedule_runs", type_="unique")
    op.create_index(
        "ix_schedule_runs_schedule_id_id", "schedule_runs", ["schedule_id", "id"], unique=False
    )
    op.drop_column("api_keys", "rotated_from")
    for table in reversed(POINTED_AT):
        op.drop_constraint(op.f(f"uq_{table}_id_account_id_livemode"), table, type_="unique")
    for table in AUDITED:
        op.execute(f"DROP TRIGGER audited ON {table}")
    for function in (
        "write_audit()",
        "audit_difference(jsonb, jsonb, text[])",
        "audit_fields(jsonb, text[])",
    ):
        op.execute(f"DROP FUNCTION {function}")
    op.drop_table("audit_log")

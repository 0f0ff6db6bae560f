"""Rights: the serving role's privileges on each table, granted by the role that owns the tables.

`api`, `worker` and `beat` connect as the serving role. Only an owner or a superuser can disable a
trigger, or drop or truncate a table. So the serving role cannot bypass the triggers that guard
invoices and the audit log (docs/decisions/0030).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.orm import Session

from xalen_batch.errors import ConfigError
from xalen_batch.models import Base

# Key of the advisory lock for migrations and grants: concurrent GRANTs on one table fail.
MIGRATION_LOCK = 7261956

READ_ONLY = ("SELECT",)
APPEND_ONLY = ("SELECT", "INSERT")
CHANGING = ("SELECT", "INSERT", "UPDATE")
DELETING = (*CHANGING, "DELETE")

# Tables that are not listed are CHANGING: rows are inserted and updated, and soft-deleted.
RIGHTS: Mapping[str, Sequence[str]] = {
    "alembic_version": READ_ONLY,
    # Triggers write these with the owner's privileges.
    "audit_log": READ_ONLY,
    "account_tallies": READ_ONLY,
    "batch_notes": READ_ONLY,
    # The statement that it is on.
    "credit_notes": (*APPEND_ONLY, "UPDATE (statement_id)"),
    "invoices": APPEND_ONLY,
    "invoice_lines": APPEND_ONLY,
    # A new price closes the old one. A trigger lets only a price that has not begun be deleted.
    "prices": (*APPEND_ONLY, "UPDATE (valid_to)", "DELETE"),
    # Erasing an output file erases the answers and keeps the charges.
    "results": (*APPEND_ONLY, "UPDATE (body)"),
    "sealed_lines": APPEND_ONLY,
    "sign_offs": APPEND_ONLY,
    # The id never changes.
    "store_mark": (*READ_ONLY, "UPDATE (placed_at)"),
    "account_quotas": DELETING,
    "batch_paces": DELETING,
    "console_tokens": DELETING,
    "consumed_objects": DELETING,
    "erasures": DELETING,
    "events": (*APPEND_ONLY, "DELETE"),
    "idempotency_keys": DELETING,
    "inbox_requests": DELETING,
    "line_attempts": DELETING,
    "lost_leases": (*APPEND_ONLY, "DELETE"),
    "schedule_runs": DELETING,
    "tasks": DELETING,
    "webhook_deliveries": DELETING,
    "webhook_endpoints": DELETING,
    "upload_parts": DELETING,
    "uploads": DELETING,
    "workers": DELETING,
}
# Views, which the serving role may read. An autoscaler's own role is granted them by the operator.
VIEWS = ("demand",)
# Functions with the owner's privileges: for partitions of `results` (models/partitions.py), and for
# entries of the audit log that are older than 90 days.
FUNCTIONS = (
    "create_results_day(date)",
    "drop_sealed_results(timestamptz)",
    "forget_audit(timestamptz, integer)",
)
# Privileges on tables that PostgreSQL 14 and all later versions have.
GRANTABLE = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")


def of(table: str) -> Sequence[str]:
    """The serving role's privileges on a table, as GRANT takes them."""
    return RIGHTS.get(table, CHANGING)


def tables() -> list[str]:
    """The names of all tables of the schema."""
    return [*(table.name for table in Base.metadata.sorted_tables), "alembic_version"]


def refuse_unless_owner(connection: psycopg.Connection) -> None:
    """Raise ConfigError if another role owns the tables: a migration would fail half-way."""
    found = connection.execute(
        "SELECT tableowner, current_user FROM pg_tables WHERE schemaname = current_schema() AND"
        " tablename = 'alembic_version' AND NOT pg_has_role(current_user, tableowner, 'MEMBER')"
    ).fetchone()
    if found is not None:
        owner, user = found
        raise ConfigError(
            f"The role {user} does not own the tables of this database, {owner} does. Set"
            f" XALEN_MIGRATE_DATABASE_URL to the address with {owner}, for `xalen-batch migrate`"
            " alone."
        )


def grant(connection: psycopg.Connection, role: str, password: str) -> None:
    """Grant the serving role exactly the rights of this module, as the owner, in one transaction.

    Idempotent. A missing role is created with the password. Raises ConfigError if that fails.
    """
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])
    schema, owner = connection.execute("SELECT current_schema(), current_user").fetchone() or (
        "public",
        "",
    )
    _guard_triggers(connection, schema)
    if role == owner:
        return
    _make(connection, role, password, owner)
    names = {"schema": sql.Identifier(schema), "role": sql.Identifier(role)}
    connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {schema} TO {role}").format(**names))
    for table in tables():
        names["table"] = sql.Identifier(schema, table)
        connection.execute(sql.SQL("REVOKE ALL ON TABLE {table} FROM {role}").format(**names))
        privileges = sql.SQL(", ").join(map(sql.SQL, of(table)))
        connection.execute(
            sql.SQL("GRANT {privileges} ON TABLE {table} TO {role}").format(
                privileges=privileges, **names
            )
        )
    for view in VIEWS:
        names["view"] = sql.Identifier(schema, view)
        connection.execute(sql.SQL("GRANT SELECT ON TABLE {view} TO {role}").format(**names))
    # pg_dump reads each partition.
    for partition in _owned(
        connection,
        schema,
        "SELECT child.relname FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid"
        " WHERE inhparent = 'results'::regclass AND child.relnamespace = %s::regnamespace",
    ):
        names["partition"] = sql.Identifier(schema, partition)
        connection.execute(sql.SQL("GRANT SELECT ON TABLE {partition} TO {role}").format(**names))
    for function in FUNCTIONS:
        connection.execute(
            sql.SQL("GRANT EXECUTE ON FUNCTION {function} TO {role}").format(
                function=sql.SQL(function), role=names["role"]
            )
        )
    # pg_dump reads sequences.
    for sequence in _owned(
        connection,
        schema,
        "SELECT relname FROM pg_class WHERE relkind = 'S' AND relnamespace = %s::regnamespace",
    ):
        names["sequence"] = sql.Identifier(schema, sequence)
        connection.execute(sql.SQL("GRANT SELECT ON SEQUENCE {sequence} TO {role}").format(**names))


def _guard_triggers(connection: psycopg.Connection, schema: str) -> None:
    """Make every trigger function SECURITY DEFINER, with a fixed search_path, and revoke EXECUTE.

    With a fixed search_path the caller cannot substitute other tables. Without EXECUTE the serving
    role cannot attach the function to a table of its own, to write audit rows of its choice.
    """
    functions = (
        "SELECT proname FROM pg_proc WHERE prorettype = 'trigger'::regtype AND pronamespace ="
        " %s::regnamespace"
    )
    for function in _owned(
        connection, schema, f"{functions} AND pg_get_userbyid(proowner) = current_user"
    ):
        names = {"function": sql.Identifier(schema, function), "schema": sql.Identifier(schema)}
        connection.execute(
            sql.SQL(
                "ALTER FUNCTION {function}() SECURITY DEFINER SET search_path = {schema}, pg_temp"
            ).format(**names)
        )
        connection.execute(
            sql.SQL("REVOKE EXECUTE ON FUNCTION {function}() FROM PUBLIC").format(**names)
        )


def _owned(connection: psycopg.Connection, schema: str, query: str) -> list[str]:
    return [name for (name,) in connection.execute(query.encode(), [schema]).fetchall()]


def _make(connection: psycopg.Connection, role: str, password: str, owner: str) -> None:
    if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
        return
    remedy = (
        f"Have it made (CREATE ROLE {role} LOGIN PASSWORD '…'), then run `xalen-batch migrate`"
        " again."
    )
    if not password:
        raise ConfigError(
            f"The role {role} of XALEN_DATABASE_URL does not exist, and the address has no password"
            f" for it. {remedy}"
        )
    # The server's log may show the statement, so it has the SCRAM verifier, not the password.
    verifier = connection.pgconn.encrypt_password(
        password.encode(), role.encode(), b"scram-sha-256"
    ).decode()
    try:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), verifier)
        )
    except psycopg.errors.InsufficientPrivilege:
        raise ConfigError(
            f"The role {role} of XALEN_DATABASE_URL does not exist, and {owner} may not make it."
            f" {remedy}"
        ) from None


@dataclass(frozen=True, slots=True)
class RoleRights:
    """The rights that the connected role has beyond a serving role, and those that it lacks."""

    role: str
    excess: list[str]
    missing: list[str]


def look(session: Session) -> RoleRights:
    """Compare the rights of the connected role with those that `grant` gives."""
    role, *flags = session.execute(text(_ROLE)).one()
    names = (
        "is a superuser",
        "may make roles",
        "owns the tables",
        "may make objects in their schema",
    )
    excess = [name for name, flag in zip(names, flags, strict=True) if flag]
    held = {
        (row.table, row.privilege)
        for row in session.execute(text(_HELD), {"tables": tables(), "privileges": list(GRANTABLE)})
    }
    granted = {(table, privilege) for table in tables() for privilege in of(table)}
    if not excess:
        excess = [f"may {privilege} {table}" for table, privilege in sorted(held - granted)]
    on_tables = {(table, privilege) for table, privilege in granted if privilege in GRANTABLE}
    lacking = on_tables - held | set(_columns_missing(session, granted - on_tables))
    missing = [f"{privilege} on {table}" for table, privilege in sorted(lacking)]
    return RoleRights(role, excess, missing)


def _columns_missing(session: Session, granted: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The privileges on single columns, as `UPDATE (body)`, that the connected role lacks."""
    for table, privilege in granted:
        kind, _, column = privilege.rstrip(")").partition(" (")
        asked = {"table": table, "column": column, "kind": kind}
        if not session.scalar(text("SELECT has_column_privilege(:table, :column, :kind)"), asked):
            yield table, privilege


_ROLE = """
SELECT current_user, rolsuper, rolcreaterole,
       EXISTS (SELECT FROM pg_tables WHERE schemaname = current_schema() AND tablename = ANY (ARRAY['alembic_version', 'audit_log'])
               AND pg_has_role(current_user, tableowner, 'MEMBER')),
       has_schema_privilege(current_schema(), 'CREATE')
FROM pg_roles WHERE rolname = current_user
"""
_HELD = """
SELECT "table", privilege FROM unnest(CAST(:tables AS text[])) "table", unnest(CAST(:privileges AS text[])) privilege
WHERE has_table_privilege("table", privilege)
"""

"""Rights: what the serving role may do to each table. The migrating role owns the tables and grants
these rights.

`api`, `worker` and `beat` connect as the serving role. Only an owner or a superuser can disable a
trigger, drop or truncate a table, so a process that serves cannot pass by the triggers that guard
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

# Migrations and grants take turns: two concurrent GRANTs on one table fail.
MIGRATION_LOCK = 7261956

READ_ONLY = ("SELECT",)
APPEND_ONLY = ("SELECT", "INSERT")
CHANGING = ("SELECT", "INSERT", "UPDATE")
DELETING = (*CHANGING, "DELETE")

# A table that is not named here is CHANGING: rows are added and changed, and marked as deleted
# rather than deleted.
RIGHTS: Mapping[str, Sequence[str]] = {
    "alembic_version": READ_ONLY,
    # Triggers write these two with the owner's rights.
    "audit_log": READ_ONLY,
    "account_tallies": READ_ONLY,
    "invoices": APPEND_ONLY,
    "invoice_lines": APPEND_ONLY,
    # A price is closed and another one opened.
    "prices": (*APPEND_ONLY, "UPDATE (valid_to)"),
    # Erasing an output file erases the answers and keeps the charges.
    "results": (*APPEND_ONLY, "UPDATE (body)"),
    # Whether it was written into the store is all that changes.
    "store_mark": (*READ_ONLY, "UPDATE (placed_at)"),
    "account_quotas": DELETING,
    "consumed_objects": DELETING,
    "erasures": DELETING,
    "idempotency_keys": DELETING,
    "inbox_requests": DELETING,
    "workers": DELETING,
}
# What a table's owner can grant, of PostgreSQL 14 and later.
GRANTABLE = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")


def of(table: str) -> Sequence[str]:
    """The serving role's privileges on a table, as GRANT takes them."""
    return RIGHTS.get(table, CHANGING)


def tables() -> list[str]:
    """Every table of the schema."""
    return [*(table.name for table in Base.metadata.sorted_tables), "alembic_version"]


def refuse_unless_owner(connection: psycopg.Connection) -> None:
    """ConfigError if another role owns this database's tables: a migration would fail half-way
    through its statements.
    """
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
    """Bring the serving role's rights in line with this module, as the owner, in one transaction.
    Safe to repeat.

    A role that is missing is made, with this password. ConfigError if it cannot be made.
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
    # pg_dump reads them.
    for sequence in _owned(
        connection,
        schema,
        "SELECT relname FROM pg_class WHERE relkind = 'S' AND relnamespace = %s::regnamespace",
    ):
        names["sequence"] = sql.Identifier(schema, sequence)
        connection.execute(sql.SQL("GRANT SELECT ON SEQUENCE {sequence} TO {role}").format(**names))


def _guard_triggers(connection: psycopg.Connection, schema: str) -> None:
    """Let every trigger function act with its owner's rights, on tables that the caller's
    search_path cannot replace.

    Without EXECUTE the serving role cannot put such a function on a table of its own, to write
    audit rows of its choice.
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
    # The server's log may show the statement, so it gets the verifier and not the password.
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
    """How the rights of the role that is connected differ from those of a serving role, in words."""

    role: str
    excess: list[str]
    missing: list[str]


def look(session: Session) -> RoleRights:
    """Compare the connected role's rights with what `migrate` grants."""
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
    whole = {(table, privilege) for table, privilege in granted if privilege in GRANTABLE}
    missing = [
        f"{privilege} on {table}"
        for table, privilege in sorted(
            whole - held | set(_columns_missing(session, granted - whole))
        )
    ]
    return RoleRights(role, excess, missing)


def _columns_missing(session: Session, granted: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
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

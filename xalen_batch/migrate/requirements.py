"""What a database has to offer before it can be migrated, looked at in one query and told in one
message.
"""

from typing import NamedTuple

import psycopg
from psycopg.rows import class_row

OLDEST_POSTGRESQL = 14
# Prices have no two periods that overlap: an exclusion constraint of this extension (a contrib
# module).
EXTENSION = "btree_gist"


class Offer(NamedTuple):
    """What a role finds.

    `schema`: where its tables go; None if its search_path names none that exists.
    """

    version: int
    version_name: str
    database: str
    role: str
    encoding: str
    is_read_only: bool
    schema: str | None
    may_create: bool
    may_make_functions: bool
    has_extension: bool
    is_extension_available: bool
    may_make_extension: bool


_LOOK = f"""
    SELECT current_setting('server_version_num')::int / 10000 AS version, current_setting('server_version') AS version_name,
           current_database()::text AS database, current_user::text AS role,
           current_setting('server_encoding') AS encoding,
           pg_is_in_recovery() OR current_setting('transaction_read_only')::bool AS is_read_only,
           current_schema()::text AS schema,
           coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may_create,
           coalesce((SELECT has_language_privilege(oid, 'USAGE') FROM pg_language WHERE lanname = 'plpgsql'), false) AS may_make_functions,
           EXISTS (SELECT FROM pg_extension WHERE extname = '{EXTENSION}') AS has_extension,
           EXISTS (SELECT FROM pg_available_extensions WHERE name = '{EXTENSION}') AS is_extension_available,
           -- It is trusted: who may create in the database may make it, and need not be a superuser.
           has_database_privilege(current_database(), 'CREATE') AS may_make_extension
"""


def look(connection: psycopg.Connection) -> Offer:
    """What the connection's role finds."""
    # From a database without an encoding text comes as bytes otherwise.
    connection.execute("SET LOCAL client_encoding TO 'UTF8'")
    with connection.cursor(row_factory=class_row(Offer)) as cursor:
        [found] = cursor.execute(_LOOK).fetchall()
        return found


def missing(found: Offer, *, is_migrated: bool = False) -> list[str]:
    """A sentence for each need that is not met.

    `is_migrated`: without the rights that only a migration needs.
    """
    lacks = []
    if found.version < OLDEST_POSTGRESQL:
        lacks.append(
            f"PostgreSQL {found.version_name} is too old: {OLDEST_POSTGRESQL} or later is needed."
        )
    if found.encoding != "UTF8":
        lacks.append(
            f"The database {found.database} has the encoding {found.encoding}: make another one, "
            "CREATE DATABASE xalen ENCODING 'UTF8' TEMPLATE template0."
        )
    if is_migrated:
        return lacks
    if found.is_read_only:
        lacks.append("The server only reads: name its primary in XALEN_DATABASE_URL.")
    if found.schema is None:
        lacks.append(
            f"The search_path of {found.role} names no schema that exists: CREATE SCHEMA"
            f" AUTHORIZATION {found.role}."
        )
    elif not found.may_create:
        lacks.append(
            f"The role {found.role} may create no tables in the schema {found.schema}:"
            f" {_grant(f'SCHEMA {found.schema}', found.role)}"
        )
    if not found.may_make_functions:
        lacks.append(
            f"The role {found.role} may write no functions and triggers in plpgsql: GRANT USAGE ON"
            f" LANGUAGE plpgsql TO {found.role}."
        )
    if not found.has_extension and not found.is_extension_available:
        lacks.append(
            f"The server has no extension {EXTENSION}: install PostgreSQL's contrib modules, for"
            " example postgresql-contrib."
        )
    elif not found.has_extension and not found.may_make_extension:
        lacks.append(
            f"The role {found.role} may not make the extension {EXTENSION}:"
            f" {_grant(f'DATABASE {found.database}', found.role)} Or run CREATE EXTENSION"
            f" {EXTENSION} as a superuser."
        )
    return lacks


def _grant(on: str, role: str) -> str:
    return f"GRANT CREATE ON {on} TO {role}."

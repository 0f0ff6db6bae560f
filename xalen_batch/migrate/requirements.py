"""Requirements on a database for migrations: version, encoding, privileges and an extension.

One query collects the facts, so that one message can name all that is missing.
"""

from typing import NamedTuple

import psycopg
from psycopg.rows import class_row

OLDEST_POSTGRESQL = 14
# A contrib module: an exclusion constraint refuses overlapping periods of prices.
EXTENSION = "btree_gist"


class Facts(NamedTuple):
    """The facts about a server, a database and a role that the requirements are checked against.

    `schema`: the first schema of the role's search_path that exists; None if none does.
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
           -- A trusted extension: CREATE on the database is enough, without being a superuser.
           has_database_privilege(current_database(), 'CREATE') AS may_make_extension
"""


def look(connection: psycopg.Connection) -> Facts:
    """The facts, as the connection's role sees them."""
    # Otherwise psycopg returns bytes instead of text from a SQL_ASCII database.
    connection.execute("SET LOCAL client_encoding TO 'UTF8'")
    with connection.cursor(row_factory=class_row(Facts)) as cursor:
        [found] = cursor.execute(_LOOK).fetchall()
        return found


def missing(found: Facts, *, is_migrated: bool = False) -> list[str]:
    """A sentence for each requirement that is not met.

    `is_migrated`: skip the privileges that only a migration needs.
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

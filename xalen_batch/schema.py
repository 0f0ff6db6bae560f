"""The database's schema: bringing it up to date, and knowing whether it is."""

import logging
from functools import cache
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from xalen_batch import db, needs, rights
from xalen_batch.billing import prices
from xalen_batch.errors import ConfigError

CONNECT_TIMEOUT = 5

# Alembic announces its context whenever the revision is looked up, which every readiness check does.
logging.getLogger("alembic").setLevel(logging.WARNING)


def migrations() -> Path:
    """The folder of the migrations: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parent
    installed = package / "_migrations"
    return installed if installed.exists() else package.parent / "migrations"


def alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    return config


def migrate() -> None:
    """Run every migration that is missing, then grant the serving role its rights. Safe to repeat, and at once.

    Changes no price: only an empty price table gets the catalog's, so that a new installation can run something.
    ConfigError if the role does not own the tables, the database lacks what migrations need, or the serving role is missing and cannot
    be made.
    """
    with _as_owner() as connection:
        rights.refuse_unless_owner(connection)
        # A database that is up to date needs less, but its revision is only asked for where something is missing: others may lock it.
        if (lacking := needs.missing(needs.look(connection))) and _revision(connection) != needed():
            raise ConfigError(f"The database cannot be migrated, and nothing was changed. {' '.join(lacking)}")
    command.upgrade(alembic(), "head")
    # Behind all migrations: whatever tables and triggers they made are in force for the serving role.
    with _as_owner() as connection:
        rights.grant(connection, *db.credentials())
    with db.transaction() as session:
        prices.fill(session)


def _as_owner() -> psycopg.Connection:
    """A connection of its own, whose transaction ends with its block."""
    return psycopg.connect(db.owner_url().replace("+psycopg", "", 1), connect_timeout=CONNECT_TIMEOUT)


def lacks() -> list[str]:
    """What the database lacks for what is still to be migrated, and for what was; a sentence each."""
    with _as_owner() as connection:
        return needs.missing(needs.look(connection), is_migrated=_revision(connection) == needed())


def _revision(connection: psycopg.Connection) -> str | None:
    """The revision as the owner sees it; the serving role may not be there yet."""
    connection.execute("SET LOCAL lock_timeout = '5s'")
    if connection.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


@cache
def needed() -> str | None:
    """The revision that this package was made for."""
    return ScriptDirectory.from_config(alembic()).get_current_head()


def found() -> str | None:
    """The revision that the database is at; None when it was never migrated."""
    with db.engine().connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def is_current() -> bool:
    return found() == needed()

"""The database's schema: bringing it up to date, and knowing whether it is."""

import logging
from enum import Enum
from functools import cache
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from xalen_batch import db
from xalen_batch.billing import prices
from xalen_batch.errors import ConfigError
from xalen_batch.migrate import requirements, rights

CONNECT_TIMEOUT = 5

# Alembic announces its context whenever the revision is looked up, which every readiness check
# does.
logging.getLogger("alembic").setLevel(logging.WARNING)


def migrations() -> Path:
    """The folder of the migrations: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_migrations"
    return installed if installed.exists() else package.parent / "migrations"


def alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    return config


def migrate() -> None:
    """Run every migration that is missing, then grant the serving role its rights. Safe to repeat,
    and at once.

    Changes no price: only an empty price table gets the catalog's, so that a new installation can
    run something. ConfigError if the role does not own the tables, the database lacks what
    migrations need, the serving role is missing and cannot be made, or a newer version has
    migrated.
    """
    with _as_owner() as connection:
        rights.refuse_unless_owner(connection)
        # A database that is up to date needs less, but its revision is only asked for where
        # something is missing: others may lock it.
        if (lacking := requirements.missing(requirements.look(connection))) and _age(
            _revision(connection)
        ) is Age.BEHIND:
            raise ConfigError(
                f"The database cannot be migrated, and nothing was changed. {' '.join(lacking)}"
            )
    try:
        command.upgrade(alembic(), "head")
    except CommandError as error:
        with _as_owner() as connection:
            revision = _revision(connection)
        if _age(revision) is not Age.NEWER:
            raise
        raise ConfigError(
            f"{newer(revision)} Nothing was changed. Run `xalen-batch migrate` of the newer"
            " version; to go back to this version for good, restore a backup that it made."
        ) from error
    # Behind all migrations: whatever tables and triggers they made are in force for the serving
    # role.
    with _as_owner() as connection:
        rights.grant(connection, *db.credentials())
    with db.transaction() as session:
        prices.fill(session)


def _as_owner() -> psycopg.Connection:
    """A connection of its own, whose transaction ends with its block."""
    return psycopg.connect(
        db.owner_url().replace("+psycopg", "", 1), connect_timeout=CONNECT_TIMEOUT
    )


class Age(Enum):
    """A database's schema, seen from this version.

    Migrations only add, so that older processes work with a newer one (rolling upgrade).
    """

    BEHIND = "behind"
    CURRENT = "current"
    NEWER = "newer"


def lacks() -> list[str]:
    """What the database lacks for what is still to be migrated, and for what was; a sentence each."""
    with _as_owner() as connection:
        return requirements.missing(
            requirements.look(connection), is_migrated=_age(_revision(connection)) is not Age.BEHIND
        )


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


def age() -> Age:
    return _age(found())


def is_usable() -> bool:
    """Whether this version can work with the database's schema."""
    return age() is not Age.BEHIND


def newer(revision: str | None) -> str:
    """What is said of a database that is ahead of this version."""
    return (
        f"The database is at revision {revision}, which a newer version of xalen-batch made; this"
        f" one knows {needed()} and what is before it."
    )


def _age(revision: str | None) -> Age:
    if revision == needed():
        return Age.CURRENT
    return Age.BEHIND if revision is None or revision in _known() else Age.NEWER


@cache
def _known() -> frozenset[str]:
    """The revisions that this package can migrate to."""
    return frozenset(
        script.revision for script in ScriptDirectory.from_config(alembic()).walk_revisions()
    )

"""Migrations: bringing the database's schema up to date, and comparing its revision with ours."""

import logging
import time
from enum import Enum
from functools import cache
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import OperationalError

from xalen_batch import db, log
from xalen_batch.billing import prices
from xalen_batch.errors import ConfigError
from xalen_batch.migrate import requirements, rights
from xalen_batch.models import partitions

# Seconds.
CONNECT_TIMEOUT = 5
# A migration that does not get a lock within LOCK_TIMEOUT_MS gives up those that it has, and is
# tried again after a pause, for LOCK_PATIENCE in all. Some lock two tables, one after the other:
# requests for the first wait for both, and so for less than a second.
LOCK_TIMEOUT_MS = 400
LOCK_PATIENCE = 600.0
PAUSE = 2.0
LOCK_NOT_AVAILABLE = "55P03"

logger = log.get(__name__)
# Alembic logs its context whenever the revision is read, as every readiness check does.
logging.getLogger("alembic").setLevel(logging.WARNING)


def migrations() -> Path:
    """The folder of the migrations: in the package if it is installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_migrations"
    return installed if installed.exists() else package.parent / "migrations"


def alembic() -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    return config


def migrate() -> None:
    """Run every migration that is missing, then grant the serving role its rights.

    Idempotent, and safe to run concurrently. An empty price table gets the catalog's prices, so
    that a new installation can run batches; other prices are not changed. Raises ConfigError if the
    role does not own the tables, a requirement is missing, the serving role cannot be created,
    other sessions keep a table locked, or a newer version has migrated the database.
    """
    with _as_owner() as connection:
        rights.refuse_unless_owner(connection)
        lacking = requirements.missing(requirements.look(connection))
        # A database that is up to date has fewer requirements. Its revision is read only if some
        # are missing, since other sessions may hold a lock on it.
        if lacking and _age(_revision(connection)) is Age.BEHIND:
            raise ConfigError(
                f"The database cannot be migrated, and nothing was changed. {' '.join(lacking)}"
            )
    try:
        _upgrade()
    except CommandError as error:
        with _as_owner() as connection:
            revision = _revision(connection)
        if _age(revision) is not Age.NEWER:
            raise
        raise ConfigError(
            f"{newer(revision)} Nothing was changed. Run `xalen-batch migrate` of the newer"
            " version; to go back to this version for good, restore a backup that it made."
        ) from error
    # After all migrations, so that the grants cover every table and trigger that they created.
    with _as_owner() as connection:
        rights.grant(connection, *db.credentials())
    with db.transaction() as session:
        prices.fill(session)
        partitions.make_ahead(session)


def _upgrade() -> None:
    """Run the missing migrations, each in its own transaction, and wait for their locks."""
    ends = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            command.upgrade(alembic(), "head")
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            if time.monotonic() >= ends:
                raise ConfigError(
                    f"A migration did not get its lock within {LOCK_PATIENCE:.0f} s, and changed"
                    " nothing: another session has used the table all the time. Sessions with long"
                    " transactions: SELECT pid, usename, xact_start, query FROM pg_stat_activity"
                    " ORDER BY xact_start. End it, then run `xalen-batch migrate` again."
                ) from error
            logger.warning("migrate.waits_for_lock", seconds=PAUSE)
            time.sleep(PAUSE)
        else:
            return


def _as_owner() -> psycopg.Connection:
    """A new connection as the owner. Its transaction ends with the `with` block."""
    return psycopg.connect(
        db.owner_url().replace("+psycopg", "", 1), connect_timeout=CONNECT_TIMEOUT
    )


class Age(Enum):
    """The age of the database's schema, compared with this version.

    Migrations only add, so processes can work with a newer schema (rolling upgrades).
    """

    BEHIND = "behind"
    CURRENT = "current"
    NEWER = "newer"


def lacks() -> list[str]:
    """A sentence for each requirement that the database does not meet."""
    with _as_owner() as connection:
        return requirements.missing(
            requirements.look(connection), is_migrated=_age(_revision(connection)) is not Age.BEHIND
        )


def _revision(connection: psycopg.Connection) -> str | None:
    """The schema's revision, read as the owner: the serving role may not exist yet."""
    connection.execute("SET LOCAL lock_timeout = '5s'")
    if connection.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


@cache
def needed() -> str | None:
    """The revision of the latest migration in this package."""
    return ScriptDirectory.from_config(alembic()).get_current_head()


def found() -> str | None:
    """The revision of the database; None if it was never migrated."""
    with db.engine().connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def age() -> Age:
    """The age of the database's schema."""
    return _age(found())


def is_usable() -> bool:
    """Whether this version can work with the database's schema."""
    return age() is not Age.BEHIND


def newer(revision: str | None) -> str:
    """The message for a database whose schema is newer than this version."""
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
    """The revisions of all migrations in this package."""
    return frozenset(
        script.revision for script in ScriptDirectory.from_config(alembic()).walk_revisions()
    )

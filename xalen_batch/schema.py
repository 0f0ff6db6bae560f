"""The database's schema: bringing it up to date, and knowing whether it is."""

import logging
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from xalen_batch import db
from xalen_batch.billing import prices

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
    """Run every migration that is missing. Safe to repeat, and at once.

    Changes no price: only an empty price table gets the catalog's, so that a new installation can run something.
    """
    command.upgrade(alembic(), "head")
    with db.transaction() as session:
        prices.fill(session)


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

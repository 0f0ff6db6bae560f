"""Database access of the operator's commands: to the configured database, or to that of a running
`xalen-batch up`.
"""

import logging
import os
import pwd
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xalen_batch.cli.connection import data_dir
from xalen_batch.cli.failures import Failed

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

VARIABLES = {"XALEN_DATABASE_URL": "database_url", "XALEN_REDIS_URL": "redis_url"}


def find() -> None:
    """Add the URLs of a running `up` to the environment, from which the settings are then read."""
    if os.environ.get("XALEN_DATABASE_URL"):
        return
    path = data_dir() / "run.toml"
    try:
        running = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise Failed(
            f"No database: nothing runs on the data folder {data_dir()}. Start `xalen-batch up`"
            " there, set XALEN_DATA_DIR to the folder on which it runs, or set"
            " XALEN_DATABASE_URL."
        ) from None
    except (OSError, ValueError) as error:
        raise Failed(f"{path} cannot be read: {error}") from error
    for variable, name in VARIABLES.items():
        if (value := running.get(name)) and not os.environ.get(variable):
            os.environ[variable] = value
    # A command may have read them before, for its catalog.
    from xalen_batch.config import settings

    settings.cache_clear()


@contextmanager
def transaction() -> Iterator["Session"]:
    """A transaction, which commits at the end.

    The audit log names the user of the command.
    """
    find()
    from xalen_batch import db, log
    from xalen_batch.accounts import audit

    # Events of the services go to stderr, since stdout is for data; the command says what it did.
    log.configure()
    logging.root.setLevel(max(logging.root.level, logging.WARNING))
    with db.transaction() as session:
        audit.sign(session, f"cli:{_user()}")
        yield session


@contextmanager
def snapshot() -> Iterator["Session"]:
    """A read-only session on a snapshot of the database."""
    find()
    from xalen_batch import db

    with db.snapshot() as session:
        yield session


def _user() -> str:
    """The user name of this process, which the environment cannot change."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"

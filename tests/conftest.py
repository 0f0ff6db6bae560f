"""One real PostgreSQL and one real Valkey for the whole run, started from the package's own
binaries.

Unit tests ask for nothing here, and start nothing.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest
import redis
import structlog
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from xalen_batch import broker, catalog, config, db, memory, migrate, storage
from xalen_batch.billing import prices
from xalen_batch.models import Base
from xalen_batch.ratelimit import account
from xalen_batch.standalone import stores as embedded
from xalen_batch.storage import marks

# Keep imported modules out of garbage collection: it took half of the time of collecting tests.
memory.spare_imports()

# No deadline for an example: its duration depends on the machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Fixtures that start several processes and serve many tests.
SHARED_SYSTEMS = ("running_system", "services", "campaign")

# Bytes of all tables, dead rows included.
LARGE = 4 * 1024 * 1024


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Let each process of pytest-xdist begin with a share of the slow tests.

    `--dist worksteal` gives each process a contiguous part of the list. A process runs its part
    from the front, and an idle one steals from the end of another's part: the fast tests have to
    be there, or one process runs slow tests at the end while the others are idle.
    """
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    slow = [item for item in items if item.path.parent.name in ("chaos", "e2e")]
    # Tests that share a running system follow each other, so that few processes start one.
    slow.sort(key=lambda item: [name in item.fixturenames for name in SHARED_SYSTEMS])
    fast = [item for item in items if item.path.parent.name not in ("chaos", "e2e")]
    items[:] = [
        item
        for n in range(processes)
        for tests in (slow, fast)
        for item in tests[len(tests) * n // processes : len(tests) * (n + 1) // processes]
    ]


def pytest_collection_finish() -> None:
    """Exclude the modules and the tests from garbage collection while the tests run."""
    memory.settle()


class Stores(NamedTuple):
    """`database_url` is the serving role's, as in production: a right that `migrate` forgets to
    grant fails tests.
    """

    database_url: str
    migrate_database_url: str
    redis_url: str
    data_dir: Path


def forget() -> None:
    """Clear the caches of values that are read from the settings once."""
    for cached in (
        config.settings,
        catalog._in_force,
        marks.identity,
        marks._is_here,
        db.engine,
        broker.celery,
        broker._publisher,
        storage.store,
    ):
        cached.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """Remove the developer's own XALEN_… variables, so that no test uses them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("XALEN_", "OPENAI_")):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _uncached_loggers() -> Iterator[None]:
    """A logger that structlog cached keeps the configuration of an earlier test, and `capture_logs`
    would miss its events.
    """
    with pytest.MonkeyPatch.context() as patch:
        configure = structlog.configure
        patch.setattr(
            structlog,
            "configure",
            lambda **given: configure(**given | {"cache_logger_on_first_use": False}),
        )
        yield


@pytest.fixture(autouse=True)
def _own_log_handlers() -> Iterator[None]:
    """A handler that a test configures writes to that test's captured stderr, which is closed after
    it.
    """
    handlers, level = logging.root.handlers.copy(), logging.root.level
    yield
    logging.root.handlers = handlers
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def stores(_clean_environment: None) -> Iterator[Stores]:
    """The servers' addresses, in the environment too; the database is built by the migrations."""
    with (
        tempfile.TemporaryDirectory(prefix="xalen-tests-") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        root = Path(folder)
        postgres = embedded.Postgres(root / "postgres", root / "postgres.log", durable=False)
        valkey = embedded.Valkey(root / "valkey", root / "valkey.log")
        try:
            for server in (postgres, valkey):
                server.start()
                for name, value in server.variables.items():
                    patch.setenv(name, value)
            found = Stores(postgres.url, postgres.owner_url, valkey.url, root / "data")
            patch.setenv("XALEN_DATA_DIR", str(found.data_dir))
            patch.setenv("XALEN_STORAGE_URL", (found.data_dir / "files").as_uri())
            # A busy machine is no Redis that is away.
            patch.setattr(account, "REDIS_TIMEOUT", 0.5)
            # On a fast machine, tests of other features would exceed the default.
            patch.setenv("XALEN_QUOTA_REQUESTS_PER_SECOND", "1000000")
            forget()
            migrate.migrate()
            storage.store()
            marks.place()
            yield found
        finally:
            if db.engine.cache_info().currsize:
                db.engine().dispose()
            _owner_engine.cache_clear()
            forget()
            valkey.stop()
            postgres.stop()


@pytest.fixture
def database(stores: Stores) -> str:
    """The URL of a database that is empty but for the catalog's prices; no file is stored.

    `db.transaction()` uses it.
    """
    empty()
    for folder in (stores.data_dir / "files").glob("*/"):
        shutil.rmtree(folder)
    return stores.database_url


def empty() -> None:
    """Leave nothing in the database but the catalog's prices, and the mark of the store."""
    names = [table.name for table in Base.metadata.sorted_tables if table.name != "store_mark"]
    with as_owner() as session:
        size = session.scalar(
            text(
                "SELECT sum(pg_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND"
                " relnamespace = current_schema()::regnamespace"
            )
        )
        # Triggers refuse it for the audit log, as they should.
        session.execute(text("SET LOCAL session_replication_role = replica"))
        if size > LARGE:
            # TRUNCATE creates new files for every table and index: ten times slower than deleting
            # the few rows that most tests leave.
            session.execute(text(f"TRUNCATE {', '.join(names)}"))
        else:
            session.execute(text("; ".join(f"DELETE FROM {name}" for name in names)))
        session.execute(text("SET LOCAL session_replication_role = origin"))
        _fill_prices(session)


# The rows of `prices`, as JSON, that `prices.fill` made for a catalog.
_filled: dict[tuple[object, ...], str] = {}


def _fill_prices(session: Session) -> None:
    """As `prices.fill`, whose statements cost more CPU than those that empty the database."""
    listed = tuple(sorted(prices._listed().items()))
    if listed in _filled:
        rows = "jsonb_populate_recordset(NULL::prices, CAST(:rows AS jsonb))"
        session.execute(text(f"INSERT INTO prices SELECT * FROM {rows}"), {"rows": _filled[listed]})
        return
    prices.fill(session)
    # PostgreSQL reads the timestamp `now` as the time of the transaction that inserts it.
    made = 'SELECT jsonb_agg(to_jsonb(prices) || \'{"valid_from": "now"}\')::text FROM prices'
    _filled[listed] = session.scalar(text(made))


@contextmanager
def as_owner() -> Iterator[Session]:
    """A transaction of the role that owns the tables, for statements that the serving role may not
    run.
    """
    with Session(_owner_engine(db.owner_url()), expire_on_commit=False) as session, session.begin():
        yield session


@cache
def _owner_engine(url: str) -> Engine:
    return create_engine(
        url,
        pool_size=1,
        connect_args={"options": "-c timezone=UTC -c xalen.actor=system -c lock_timeout=60s"},
    )


@pytest.fixture
def session(database: str) -> Iterator[Session]:
    """An open transaction; it commits when the test has ended."""
    with db.transaction() as session:
        yield session


@pytest.fixture
def valkey(stores: Stores) -> Iterator[redis.Redis]:
    """A client of the empty Valkey that the broker uses."""
    with redis.Redis.from_url(stores.redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def configure() -> Iterator[Callable[..., None]]:
    """`configure(lease=2, task_lines=5)` changes settings for one test."""
    with pytest.MonkeyPatch.context() as patch:

        def change(**values: object) -> None:
            for name, value in values.items():
                patch.setenv(f"XALEN_{name.upper()}", str(value))
            _read_again()

        yield change
    _read_again()


def _read_again() -> None:
    for cached in (
        config.settings,
        catalog._in_force,
        marks._is_here,
        storage.store,
    ):
        cached.cache_clear()

"""Alembic's entry: runs under `xalen-batch migrate`, which names the database."""

import time

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from xalen_batch import db, migrate
from xalen_batch.migrate import rights
from xalen_batch.models import Base

# Seconds.
LOCK_PAUSE = 0.2


def run() -> None:
    # Without a pool a migration that fails leaves no session behind, which would keep its lock.
    engine = create_engine(
        context.config.get_main_option("sqlalchemy.url") or db.owner_url(), poolclass=NullPool
    )
    with engine.connect() as connection:
        connection.execute(text("SET statement_timeout = 0"))
        # Two migrations at once: the second waits here, then finds nothing to do. It polls, because
        # a statement that waits has a snapshot, for which CREATE INDEX CONCURRENTLY waits: a
        # deadlock.
        lock = text(f"SELECT pg_try_advisory_lock({rights.MIGRATION_LOCK})")
        while not connection.scalar(lock):
            connection.commit()
            time.sleep(LOCK_PAUSE)
        # Every query on the table queues behind a migration that waits for its lock.
        connection.execute(text(f"SET lock_timeout = {migrate.LOCK_TIMEOUT_MS}"))
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            # Partitions are made for each day; the model describes the table as a whole.
            include_name=lambda name, kind, _: kind != "table" or not name.startswith("results_"),
            compare_type=True,
            compare_server_default=False,
            # A migration that is tried again does not lock the tables of those before it.
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()


run()

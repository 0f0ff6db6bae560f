"""Alembic's entry: runs under `xalen-batch migrate`, which names the database."""

from alembic import context
from sqlalchemy import create_engine, text

from xalen_batch import db
from xalen_batch.models import Base


def run() -> None:
    engine = create_engine(context.config.get_main_option("sqlalchemy.url") or db.url())
    with engine.connect() as connection:
        # A migration that cannot get its lock fails fast instead of queueing every query behind it.
        connection.execute(text("SET lock_timeout = '5s'"))
        # Two migrations at once: the second waits here, then finds nothing to do.
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_lock(7261956)"))
        connection.commit()
        context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True, compare_server_default=False)
        with context.begin_transaction():
            context.run_migrations()
        connection.execute(text("SELECT pg_advisory_unlock(7261956)"))
        connection.commit()
    engine.dispose()


run()

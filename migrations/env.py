"""Alembic's entry: runs under `xalen-batch migrate`, which names the database."""

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from xalen_batch import db
from xalen_batch.migrate import rights
from xalen_batch.models import Base


def run() -> None:
    # Without a pool a migration that fails leaves no session behind, which would keep its lock.
    engine = create_engine(
        context.config.get_main_option("sqlalchemy.url") or db.owner_url(), poolclass=NullPool
    )
    with engine.connect() as connection:
        connection.execute(text("SET statement_timeout = 0"))
        # Two migrations at once: the second waits here, then finds nothing to do.
        connection.execute(text(f"SELECT pg_advisory_lock({rights.MIGRATION_LOCK})"))
        # A migration that cannot get its lock fails fast instead of queueing every query behind it.
        connection.execute(text("SET lock_timeout = '5s'"))
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            compare_type=True,
            compare_server_default=False,
        )
        with context.begin_transaction():
            context.run_migrations()


run()

"""A clock of PostgreSQL that a test can set: a `now()` in a schema that precedes `pg_catalog`."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from sqlalchemy import create_engine, text

from tests.conftest import as_owner
from xalen_batch import db
from xalen_batch.billing import prices

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FUNCTIONS = """
CREATE SCHEMA clock;
CREATE TABLE clock.shift (by interval NOT NULL, pace float NOT NULL, since timestamptz NOT NULL);
INSERT INTO clock.shift VALUES ('0', 1, pg_catalog.now());
CREATE FUNCTION clock.now() RETURNS timestamptz LANGUAGE sql STABLE AS
  $$ SELECT since + by + (pg_catalog.now() - since) * pace FROM clock.shift $$;
CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
  $$ SELECT since + by + (pg_catalog.clock_timestamp() - since) * pace FROM clock.shift $$;
"""


class Clock:
    def set(self, at: datetime) -> None:
        """Set the time to `at`; the clock runs on from there."""
        self._change(
            "UPDATE clock.shift SET by = CAST(:at AS timestamptz) - pg_catalog.now(), since ="
            " pg_catalog.now(), pace = 1",
            at=at,
        )

    def advance(self, by: timedelta) -> None:
        self._change("UPDATE clock.shift SET by = by + CAST(:by AS interval)", by=by)

    def run_fast(self, at: datetime, pace: float) -> None:
        """Set the time to `at`; the clock runs on `pace` times as fast as real time."""
        self._change(
            "UPDATE clock.shift SET by = CAST(:at AS timestamptz) - pg_catalog.now(), since ="
            " pg_catalog.now(), pace = :pace",
            at=at,
            pace=pace,
        )

    def now(self) -> datetime:
        with db.engine().connect() as connection:
            now: datetime = connection.scalar(text("SELECT clock.now()"))
            return now

    @staticmethod
    def _change(statement: str, **values: object) -> None:
        with db.engine().begin() as connection:
            connection.execute(text(statement), values)


@contextmanager
def installed() -> Iterator[Clock]:
    """The clock, in force for every connection made to the settings' database meanwhile."""
    server = create_engine(db.owner_url(), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        name = connection.scalar(text("SELECT current_database()"))
        connection.execute(text(FUNCTIONS))
        serving, _ = db.credentials()
        connection.execute(
            text(
                f"GRANT USAGE ON SCHEMA clock TO {serving}; GRANT SELECT, UPDATE ON clock.shift TO"
                f" {serving}"
            )
        )
        connection.execute(
            text(f'ALTER DATABASE "{name}" SET search_path = clock, public, pg_catalog')
        )
    db.engine().dispose()
    try:
        clock = Clock()
        # Prices are valid from the moment at which they are stored, which must precede every time
        # that a test sets.
        clock.set(LONG_AGO)
        with as_owner() as session:
            session.execute(text("TRUNCATE prices"))
        with db.transaction() as session:
            prices.fill(session)
        yield clock
    finally:
        with server.connect() as connection:
            connection.execute(text(f'ALTER DATABASE "{name}" RESET search_path'))
            connection.execute(text("DROP SCHEMA clock CASCADE"))
        db.engine().dispose()
        server.dispose()

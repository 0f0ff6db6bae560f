"""The database edge: closed connections, silent and read-only servers, and reading sessions."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from tests import factories
from tests.conftest import Stores, forget
from tests.fault_proxy import FaultProxy
from tests.waiting import PATIENCE
from xalen_batch import db
from xalen_batch.db import Trouble
from xalen_batch.standalone import stores as embedded


@pytest.fixture
def proxy(stores: Stores, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The proxy through which `db` reaches the database."""
    folder = stores.database_url.partition("host=")[2].partition("&")[0]
    direct = make_url(database)
    db.engine().dispose()
    with FaultProxy(Path(unquote(folder)) / f".s.PGSQL.{embedded.POSTGRES_PORT}") as proxy:
        through = direct.set(host="127.0.0.1", port=proxy.port, query={})
        monkeypatch.setenv("XALEN_DATABASE_URL", through.render_as_string(hide_password=False))
        forget()
        yield proxy
        db.engine().dispose()
    monkeypatch.undo()
    forget()


@pytest.fixture
def read_only(stores: Stores, database: str) -> Iterator[None]:
    """Make the server read-only until the test's end, as after another one was promoted."""
    with psycopg.connect(stores.migrate_database_url, autocommit=True) as server:
        name = server.info.dbname
        server.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        db.engine().dispose()
        yield
        server.execute("SET default_transaction_read_only = off")
        server.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        db.engine().dispose()


def write() -> None:
    with db.transaction() as session:
        session.execute(text("DELETE FROM workers"))


def test_an_idle_connection_that_the_server_closed_is_replaced_unnoticed(database: str) -> None:
    with db.reading() as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
    with psycopg.connect(database) as other:
        assert other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid]).fetchone() == (True,)
    with db.reading() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != pid


def test_a_session_that_only_reads_is_in_no_transaction_and_the_next_one_is(database: str) -> None:
    later = text("SELECT pg_backend_pid(), now()")
    # The pool is empty, so both get the same new connection.
    db.engine().dispose()
    with db.reading() as session:
        (pid, first), (_, second) = session.execute(later).one(), session.execute(later).one()
        assert first < second
    with db.transaction() as session:
        (same, first), (_, second) = session.execute(later).one(), session.execute(later).one()
        assert (same, first) == (pid, second)


@pytest.mark.timing
def test_a_server_that_falls_silent_is_given_up_and_reached_again_when_it_speaks(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "SILENCE_TIMEOUT", 2.0)
    write()
    proxy.black_hole()
    begun = time.monotonic()
    with pytest.raises(db.UNAVAILABLE):
        write()
    # One timeout, not a second one for the ROLLBACK.
    assert time.monotonic() - begun < 20
    proxy.heal()
    write()


def test_a_transaction_that_may_take_its_time_is_waited_for(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "SILENCE_TIMEOUT", 1.0)
    with db.transaction() as session:
        db.lift_timeouts(session)
        session.execute(text("SELECT pg_sleep(2)"))
    with pytest.raises(db.UNAVAILABLE), db.transaction() as session:
        session.execute(text("SELECT pg_sleep(2)"))


def test_a_new_connection_to_a_silent_server_is_given_up_too(proxy: FaultProxy) -> None:
    proxy.black_hole()
    with pytest.raises(db.UNAVAILABLE):
        write()
    proxy.heal()
    write()


def test_a_server_that_only_reads_is_away_and_its_connections_are_not_kept(
    read_only: None, stores: Stores
) -> None:
    with pytest.raises(db.UNAVAILABLE):
        write()
    with psycopg.connect(stores.migrate_database_url, autocommit=True) as server:
        server.execute("SET default_transaction_read_only = off")
        server.execute(f'ALTER DATABASE "{server.info.dbname}" RESET default_transaction_read_only')
    write()


def test_a_session_that_the_server_ended_in_mid_transaction_is_away(database: str) -> None:
    def sleep_in_a_transaction() -> None:
        with db.transaction() as session:
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 50"))
            session.execute(text("SELECT 1"))
            time.sleep(1)
            session.execute(text("SELECT 1"))

    with pytest.raises(db.UNAVAILABLE):
        sleep_in_a_transaction()
    write()


def _account() -> UUID:
    with db.transaction() as session:
        return factories.account(session).id


def _fails(session: Session, statement: str) -> Trouble:
    with pytest.raises(db.UNAVAILABLE) as raised:
        session.execute(text(statement))
    return db.trouble(raised.value)


@pytest.mark.parametrize(
    ("statement", "trouble"),
    [
        ("SELECT pg_sleep(5)", Trouble.TIMEOUT),
        ("SELECT id FROM accounts FOR UPDATE NOWAIT", Trouble.TIMEOUT),
        ("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$", Trouble.CONFLICT),
        ("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$", Trouble.EXHAUSTED),
        ("DO $$ BEGIN RAISE SQLSTATE '57P01'; END $$", Trouble.UNREACHABLE),
    ],
)
def test_a_transaction_that_fails_is_named_after_its_cause(
    database: str, statement: str, trouble: Trouble
) -> None:
    _account()
    with psycopg.connect(database) as other, db.transaction() as session:
        other.execute("SELECT id FROM accounts FOR UPDATE")
        session.execute(text("SET LOCAL statement_timeout = 20"))
        assert _fails(session, statement) is trouble
        session.rollback()


def test_a_deadlock_is_a_conflict_and_not_a_database_that_is_away(database: str) -> None:
    first, second = _account(), _account()
    found: list[Trouble] = []
    meet = threading.Barrier(2)

    def lock(one: UUID, other: UUID) -> None:
        try:
            with db.transaction() as session:
                session.execute(text("SELECT FROM accounts WHERE id = :id FOR UPDATE"), {"id": one})
                meet.wait(PATIENCE)
                session.execute(
                    text("SELECT FROM accounts WHERE id = :id FOR UPDATE"), {"id": other}
                )
        except db.UNAVAILABLE as error:
            found.append(db.trouble(error))

    threads = [
        threading.Thread(target=lock, args=pair) for pair in ((first, second), (second, first))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == [Trouble.CONFLICT]

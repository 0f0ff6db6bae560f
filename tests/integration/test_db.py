"""The database edge: connections that the server closed, and sessions that only read."""

import psycopg
from sqlalchemy import text

from xalen_batch import db


def test_an_idle_connection_that_the_server_closed_is_replaced_unnoticed(database: str) -> None:
    with db.reading() as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
    with psycopg.connect(database) as other:
        assert other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid]).fetchone() == (True,)
    with db.reading() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != pid


def test_a_session_that_only_reads_is_in_no_transaction_and_the_next_one_is(database: str) -> None:
    later = text("SELECT pg_backend_pid(), now()")
    # Of an empty pool, both get the one connection that is made.
    db.engine().dispose()
    with db.reading() as session:
        (pid, first), (_, second) = session.execute(later).one(), session.execute(later).one()
        assert first < second
    with db.transaction() as session:
        (same, first), (_, second) = session.execute(later).one(), session.execute(later).one()
        assert (same, first) == (pid, second)

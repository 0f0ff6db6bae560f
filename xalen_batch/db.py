"""The database edge: the engine, and the one context manager that commits.

Messages collected in a transaction leave after its commit. What a crash loses in between, the
sweep sends again.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from functools import cache
from select import POLLIN, poll
from typing import Any, TypeVar, cast

import psycopg
from psycopg.abc import PQGen
from psycopg.rows import TupleRow
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, event, func, make_url, select, text
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import InvalidatePoolError, OperationalError, TimeoutError
from sqlalchemy.orm import Session

from xalen_batch import broker
from xalen_batch.broker import Job, Message
from xalen_batch.config import settings
from xalen_batch.errors import ConfigError

RV = TypeVar("RV")

STATEMENT_TIMEOUT_MS = 30_000
LOCK_TIMEOUT_MS = 15_000
# A server that says nothing for longer than any statement may take is not there any more, or cannot
# be reached; seconds.
SILENCE = 35.0

# A database that is gone, overloaded or full, or no free connection to it. COPY raises psycopg's
# own errors.
UNAVAILABLE = (OperationalError, TimeoutError, psycopg.OperationalError)
# SQLSTATEs of a server that is not, or no longer, the one to speak to, which drivers take for
# errors of ours: one that only reads since another was promoted, and one that ended our session
# while we were frozen in a transaction.
NOT_HERE = frozenset({"25006", "25P03", "25P04"})


class Trouble(StrEnum):
    """Why a transaction failed that may succeed later, as the name of the event that logs it."""

    # Another transaction changed or locked the same rows; PostgreSQL rolled this one back (40001,
    # 40P01). Worth a retry at once.
    CONFLICT = "database.conflict"
    # A statement or a lock took longer than it may (57014, 55P03).
    TIMEOUT = "database.timeout"
    # The server has no disk, memory or connection left (class 53).
    EXHAUSTED = "database.exhausted"
    # This process has no free connection.
    POOL = "database.pool_exhausted"
    UNREACHABLE = "database.unreachable"


_TROUBLES = {
    "40001": Trouble.CONFLICT,
    "40P01": Trouble.CONFLICT,
    "55P03": Trouble.TIMEOUT,
    "57014": Trouble.TIMEOUT,
    "53000": Trouble.EXHAUSTED,
    "53100": Trouble.EXHAUSTED,
    "53200": Trouble.EXHAUSTED,
    "53300": Trouble.EXHAUSTED,
    "53400": Trouble.EXHAUSTED,
}


def trouble(error: Exception) -> Trouble:
    """What an error among UNAVAILABLE says of the database."""
    if isinstance(error, TimeoutError):
        return Trouble.POOL
    return _TROUBLES.get(
        str(getattr(getattr(error, "orig", error), "sqlstate", None)), Trouble.UNREACHABLE
    )


def url() -> str:
    """The database's address in SQLAlchemy's spelling."""
    return _spelled(_serving())


def owner_url() -> str:
    """The address of the role that owns the tables, in SQLAlchemy's spelling.

    Only migrations use it.
    """
    return _spelled(settings().migrate_database_url or _serving())


def credentials() -> tuple[str, str]:
    """The role that serves, and its password."""
    address = make_url(url())
    return str(address.username or ""), str(address.password or "")


def _serving() -> SecretStr:
    value = settings().database_url
    if value is None:
        raise ConfigError(
            "XALEN_DATABASE_URL is not set. Set it to a PostgreSQL server, or use `xalen-batch up`,"
            " which starts its own."
        )
    return value


def _spelled(address: SecretStr) -> str:
    _, _, rest = address.get_secret_value().partition("://")
    return f"postgresql+psycopg://{rest}"


@cache
def engine() -> Engine:
    """The connection pool of this process. Made on first use, never before a fork."""
    made = create_engine(
        url(),
        pool_size=settings().pool_size,
        max_overflow=0,
        pool_timeout=10,
        # Bound values are users' prompts and answers; an error message must not carry them into a
        # log.
        hide_parameters=True,
        connect_args={
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            # Keepalives do not cover what was sent and never acknowledged: a host that vanished in
            # mid-query.
            "tcp_user_timeout": 25_000,
            # Every query here is short: compiling one takes longer than running it. What they look
            # up is in memory, or on a disk without arms, where PostgreSQL's own guess (4) makes it
            # read tables from end to end instead.
            "options": (
                f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS} -c"
                " idle_in_transaction_session_timeout=60000 -c timezone=UTC"
                " -c jit=off -c random_page_cost=1.1"
                # Who changes something, until a transaction says otherwise (audit.py).
                " -c xalen.actor=system"
            ),
        },
    )
    event.listen(made, "do_connect", _connect)
    event.listen(made, "checkout", _refuse_if_closed)
    event.listen(made, "handle_error", _tell_away)
    return made


class _Connection(psycopg.Connection[TupleRow]):
    """One that gives up on a server which has fallen silent: what keepalives see is its host, which
    may well be there.
    """

    is_patient = False

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        if self.is_patient:
            return super().wait(gen, *args, **kwargs)
        deadline = time.monotonic() + SILENCE
        try:
            return super().wait(gen, *args, **({"timeout": SILENCE} | kwargs))
        except psycopg.OperationalError:
            if time.monotonic() >= deadline:
                # Else it would be waited for again, to roll back.
                self.pgconn.finish()
            raise


def _connect(
    dialect: object, record: object, args: list[Any], options: dict[str, Any]
) -> psycopg.Connection[TupleRow]:
    return _Connection.connect(*args, **options)


def _tell_away(context: ExceptionContext) -> None:
    # Every connection is made anew then: addresses may name another server by now.
    if getattr(context.original_exception, "sqlstate", None) in NOT_HERE:
        context.is_disconnect = True
        raise OperationalError(
            context.statement, None, context.original_exception, hide_parameters=True
        )


def _refuse_if_closed(connection: _Connection, record: object, proxy: object) -> None:
    connection.is_patient = False
    # A server that closes an idle connection can be heard doing it, so only one that was heard is
    # pinged: a system call in the place of a round trip before each transaction. The pool then
    # connects anew.
    heard = poll()
    heard.register(connection.fileno(), POLLIN)
    try:
        if heard.poll(0):
            engine().dialect.do_ping(cast(DBAPIConnection, connection))
    except psycopg.Error as error:
        raise InvalidatePoolError from error


@contextmanager
def transaction() -> Iterator[Session]:
    """One unit of work: commits at the end, rolls back on any error, then sends its messages."""
    with Session(engine(), expire_on_commit=False) as session:
        yield session
        session.commit()
        messages: list[Message] = session.info.get("messages", [])
    broker.publish(messages)


@contextmanager
def reading() -> Iterator[Session]:
    """A session that only reads, and keeps no lock: each of its statements is a transaction.

    It sees what it would in one (each statement what is committed when it begins), without the
    round trips of BEGIN and COMMIT.
    """
    with Session(engine(), expire_on_commit=False) as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        yield session


@contextmanager
def snapshot() -> Iterator[Session]:
    """A read-only transaction in which every statement sees the same moment, and may take as long
    as it needs.

    REPEATABLE READ is chosen before the first statement: PostgreSQL takes the snapshot there, and
    refuses a later change.
    """
    with Session(engine(), expire_on_commit=False) as session:
        session.connection(
            execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )
        take_time(session)
        yield session


def enqueue(session: Session, job: Job, id: str | None = None) -> None:
    """Name the next job; it is published after the commit, once however often it is named."""
    messages: list[Message] = session.info.setdefault("messages", [])
    message = Message(job, id)
    if message not in messages:
        messages.append(message)


def take_time(session: Session) -> None:
    """Let each statement of this transaction take as long as it needs."""
    session.execute(text("SET LOCAL statement_timeout = 0"))
    cast(_Connection, driver(session)).is_patient = True


def now(session: Session) -> datetime:
    """PostgreSQL's time at the beginning of the transaction."""
    return session.execute(select(func.now())).scalar_one()


def driver(session: Session) -> psycopg.Connection:
    """The session's own psycopg connection, inside its transaction: for COPY and binary arrays."""
    return cast(psycopg.Connection, session.connection().connection.driver_connection)


def ping() -> None:
    """Raise when the database does not answer."""
    with engine().connect() as connection:
        connection.execute(text("SELECT 1"))

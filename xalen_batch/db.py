"""The database edge: the engine, and the only context manager that commits.

Messages that a transaction collects are published after its commit. If a crash comes in between, a
sweep publishes them again (`pipeline/recover.py`).
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
# Seconds without a byte from the server, after which the connection is closed. Longer than any
# statement may take.
SILENCE_TIMEOUT = 35.0

# Errors of a database that is down, overloaded or full, or of an exhausted connection pool. COPY
# raises psycopg's own errors.
UNAVAILABLE = (OperationalError, TimeoutError, psycopg.OperationalError)
# SQLSTATEs after which we have to connect anew, and which drivers take for errors of our SQL: the
# server is read-only since a failover (25006), or it ended our session because this process was
# frozen in a transaction (25P03, 25P04).
RECONNECT_ON = frozenset({"25006", "25P03", "25P04"})


class Trouble(StrEnum):
    """Why a transaction failed that may succeed later. The values are names of log events."""

    # A serialization failure or a deadlock: PostgreSQL rolled the transaction back (40001, 40P01).
    # Retry at once.
    CONFLICT = "database.conflict"
    # A statement or the wait for a lock exceeded its timeout (57014, 55P03).
    TIMEOUT = "database.timeout"
    # The server has no disk space, memory or connections left (class 53).
    EXHAUSTED = "database.exhausted"
    # The connection pool of this process is exhausted.
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
    """Classify an error of UNAVAILABLE."""
    if isinstance(error, TimeoutError):
        return Trouble.POOL
    return _TROUBLES.get(
        str(getattr(getattr(error, "orig", error), "sqlstate", None)), Trouble.UNREACHABLE
    )


def url() -> str:
    """The address of the database with the serving role, as SQLAlchemy spells it.

    Raises ConfigError if the settings have none.
    """
    return _spelled(_serving())


def owner_url() -> str:
    """The address with the role that owns the tables. Only migrations use it."""
    return _spelled(settings().migrate_database_url or _serving())


def credentials() -> tuple[str, str]:
    """The serving role and its password."""
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
    """The connection pool of this process, for any thread. Created on first use, after any fork."""
    made = create_engine(
        url(),
        pool_size=settings().pool_size,
        max_overflow=0,
        pool_timeout=10,
        # The connection that was used last comes first: it has prepared the usual statements.
        pool_use_lifo=True,
        # Bound values are users' prompts and answers, which error messages must not bring into a
        # log.
        hide_parameters=True,
        connect_args={
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            # Milliseconds. Keepalives do not cover data that was sent and is not acknowledged, as
            # when a host vanishes during a query.
            "tcp_user_timeout": 25_000,
            # jit=off: every query is short, and compiling it takes longer than running it.
            # random_page_cost=1.1: data is in memory or on an SSD. The default of 4 is for spinning
            # disks, and leads to sequential scans.
            "options": (
                f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS} -c"
                " idle_in_transaction_session_timeout=60000 -c timezone=UTC"
                " -c jit=off -c random_page_cost=1.1"
                # The actor in the audit log, unless a transaction sets another (audit.py).
                " -c xalen.actor=system"
            ),
        },
    )
    event.listen(made, "do_connect", _connect)
    event.listen(made, "checkout", _refuse_if_closed)
    event.listen(made, "handle_error", _reconnect_if_needed)
    return made


class _Connection(psycopg.Connection[TupleRow]):
    """A connection that is closed after SILENCE_TIMEOUT seconds without a byte from the server.

    Keepalives do not find a frozen server process: its host still answers them.
    """

    # True: wait without a timeout, for statements that may take long.
    is_patient = False

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        if self.is_patient:
            return super().wait(gen, *args, **kwargs)
        deadline = time.monotonic() + SILENCE_TIMEOUT
        try:
            return super().wait(gen, *args, **({"timeout": SILENCE_TIMEOUT} | kwargs))
        except psycopg.OperationalError:
            if time.monotonic() >= deadline:
                # Closed, since a rollback would wait for the silent server once more.
                self.pgconn.finish()
            raise


def _connect(
    dialect: object, record: object, args: list[Any], options: dict[str, Any]
) -> psycopg.Connection[TupleRow]:
    return _Connection.connect(*args, **options)


def _reconnect_if_needed(context: ExceptionContext) -> None:
    # A disconnect invalidates the whole pool: the address may lead to another server now.
    if getattr(context.original_exception, "sqlstate", None) in RECONNECT_ON:
        context.is_disconnect = True
        raise OperationalError(
            context.statement, None, context.original_exception, hide_parameters=True
        )


def _refuse_if_closed(connection: _Connection, record: object, proxy: object) -> None:
    connection.is_patient = False
    # A server that closes an idle connection sends bytes, so only a connection with bytes to read
    # is pinged: one system call instead of a round trip before each transaction. If the ping
    # fails, the pool connects anew.
    incoming = poll()
    incoming.register(connection.fileno(), POLLIN)
    try:
        if incoming.poll(0):
            engine().dialect.do_ping(cast(DBAPIConnection, connection))
    except psycopg.Error as error:
        raise InvalidatePoolError from error


@contextmanager
def transaction() -> Iterator[Session]:
    """One unit of work: commits at the end and publishes its messages; rolls back on any error."""
    with Session(engine(), expire_on_commit=False) as session:
        yield session
        session.commit()
        messages: list[Message] = session.info.get("messages", [])
    broker.publish(messages)


@contextmanager
def autocommit() -> Iterator[Session]:
    """A session in which each statement is a transaction: no round trips of BEGIN and COMMIT.

    For a change that is one statement, and for reading.
    """
    with Session(engine(), expire_on_commit=False) as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        yield session


@contextmanager
def reading() -> Iterator[Session]:
    """A session for reading without locks, in autocommit.

    Statements see the same as in a READ COMMITTED transaction.
    """
    with autocommit() as session:
        yield session


@contextmanager
def snapshot() -> Iterator[Session]:
    """A read-only REPEATABLE READ transaction: all statements see one snapshot. No timeout.

    The isolation level is set before the first statement, which takes the snapshot; PostgreSQL
    refuses a later change.
    """
    with Session(engine(), expire_on_commit=False) as session:
        session.connection(
            execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )
        lift_timeouts(session)
        yield session


def enqueue(session: Session, job: Job, id: str | None = None) -> None:
    """Publish a job's message after this transaction's commit. Duplicates are dropped."""
    messages: list[Message] = session.info.setdefault("messages", [])
    message = Message(job, id)
    if message not in messages:
        messages.append(message)


def lift_timeouts(session: Session) -> None:
    """Run the following statements of this transaction without a timeout."""
    session.execute(text("SET LOCAL statement_timeout = 0"))
    cast(_Connection, driver(session)).is_patient = True


def plan_generically(session: Session) -> None:
    """Run the following statements of this transaction with plans for any values.

    PostgreSQL keeps such a plan for the connection. Use it where planning takes longer than
    running, and the values do not decide which plan is good.
    """
    session.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))


def now(session: Session) -> datetime:
    """The beginning of this transaction, by PostgreSQL's clock."""
    return session.execute(select(func.now())).scalar_one()


def driver(session: Session) -> psycopg.Connection:
    """The psycopg connection of a session, in its transaction: for COPY and binary results."""
    return cast(psycopg.Connection, session.connection().connection.driver_connection)


def ping() -> None:
    """Raise an error of UNAVAILABLE unless the database answers."""
    with engine().connect() as connection:
        connection.execute(text("SELECT 1"))

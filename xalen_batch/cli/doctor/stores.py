"""Checks of `doctor` on the stores: PostgreSQL, its migrations, Redis, and their passwords."""

from xalen_batch.cli import database
from xalen_batch.cli.doctor import passwords
from xalen_batch.cli.doctor.findings import Doubtful, Skipped, Wrong, first_line


def postgresql() -> str:
    database.find()
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    from xalen_batch import db

    try:
        with db.engine().connect() as session:
            version = session.scalar(text("SHOW server_version"))
    except OperationalError as error:
        raise Wrong(
            f"It does not answer: {first_line(error.orig or error)}."
            f" {_remedy('XALEN_DATABASE_URL')}"
        ) from error
    except (SQLAlchemyError, ValueError):
        # The libraries' messages can quote the password.
        raise Wrong(
            "XALEN_DATABASE_URL cannot be used. It looks like"
            " postgresql://user:password@host:5432/name."
        ) from None
    return f"PostgreSQL {version}"


def migrations(has_database: bool) -> str:
    if not has_database:
        raise Skipped("not checked: no database")
    from xalen_batch import migrate

    found, age = migrate.found(), migrate.age()
    if age is migrate.Age.BEHIND:
        raise Wrong(
            f"The database is at {found or 'no revision'}, and {migrate.needed()} is needed:"
            " xalen-batch migrate"
        )
    if age is migrate.Age.NEWER:
        raise Doubtful(
            f"{migrate.newer(found)} Both work during an upgrade; then start the newer version here"
            " too."
        )
    return f"at {found}"


def redis_queue() -> str:
    import redis

    from xalen_batch import broker
    from xalen_batch.config import settings

    if settings().redis_url is None:
        if settings().database_url is None:
            raise Skipped("not checked: nothing runs")
        raise Wrong(
            "XALEN_REDIS_URL is not set. Set it to a Redis or Valkey server, or use `xalen-batch"
            " up`, which starts its own."
        )
    try:
        server = broker.ping()
    except redis.ResponseError as error:
        remedies = (
            "Set XALEN_REDIS_URL to a primary that has room, with a user that may do all and a"
            " database that it has."
        )
        raise Wrong(
            f"It answers and cannot be written to: {first_line(error)}. {remedies}"
        ) from error
    except redis.RedisError as error:
        raise Wrong(
            f"It does not answer: {first_line(error)}. {_remedy('XALEN_REDIS_URL')}"
        ) from error
    except (ValueError, TypeError):
        raise Wrong(
            "XALEN_REDIS_URL cannot be used. It looks like redis://:password@host:6379/0."
        ) from None
    name = (
        f"{server.get('server_name', 'redis')}"
        f" {server.get('valkey_version') or server.get('redis_version')}"
    )
    if server.get("maxmemory_policy") != "noeviction":
        raise Wrong(f"{name} may evict queued messages: set its maxmemory-policy to noeviction.")
    if not server.get("aof_enabled"):
        raise Doubtful(
            f"{name} forgets its queue when it is killed; work then starts later. Set appendonly to"
            " yes."
        )
    return name


def store_passwords(has_stores: bool) -> str:
    if not has_stores:
        raise Skipped("not checked: a store is missing")
    from xalen_batch import broker, db

    addresses = db.url().replace("+psycopg", "", 1), broker.url()
    found = passwords.of_database(addresses[0]), passwords.of_redis(addresses[1])
    findings = [finding for finding in found if finding]
    if findings:
        raise Doubtful(" ".join(findings))
    if all(map(passwords.is_local_socket, addresses)):
        return "local sockets, no password needed"
    return "asked for, and none that is tried first"


def _remedy(variable: str) -> str:
    return f"Start it (`xalen-batch up` starts its own), or correct {variable}."

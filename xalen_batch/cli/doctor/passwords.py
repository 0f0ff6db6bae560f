"""Checks that a store which can be reached does not let everybody in.

It must ask for a password, and not for a common one.
"""

import os
from urllib.parse import parse_qs, unquote, urlsplit

# Passwords of examples and images, which attackers try first.
TRIED_FIRST = frozenset(
    {
        "admin",
        "changeme",
        "default",
        "example",
        "foobared",
        "letmein",
        "password",
        "postgres",
        "postgresql",
        "secret",
        "valkey",
        "xalen",
    }
)
SHORTEST = 8
# Seconds.
TIMEOUT = 3


def of_database(url: str) -> str | None:
    """The finding with its remedy, or None. The file system guards a local socket."""
    if is_local_socket(url):
        return None
    import psycopg

    try:
        # libpq would look for an empty password in the environment and a file.
        psycopg.connect(url, password="none", passfile=os.devnull, connect_timeout=TIMEOUT).close()
    except psycopg.OperationalError:
        return _guessable(url, "XALEN_DATABASE_URL")
    return (
        "PostgreSQL lets anyone in from here, whatever the password: set its pg_hba.conf to"
        " scram-sha-256."
    )


def of_redis(url: str) -> str | None:
    """The finding with its remedy, or None. The file system guards a local socket."""
    if is_local_socket(url):
        return None
    import redis

    parts = urlsplit(url)
    nobody = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        with redis.Redis.from_url(
            nobody, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT
        ) as client:
            client.ping()
    except redis.RedisError:
        return _guessable(url, "XALEN_REDIS_URL")
    return (
        "Redis asks for no password: set its requirepass, and XALEN_REDIS_URL to"
        " redis://:password@host:6379/0."
    )


def is_local_socket(url: str) -> bool:
    """Whether an address names a Unix socket in place of a host."""
    parts = urlsplit(url)
    host = parts.hostname or parse_qs(parts.query).get("host", [""])[0]
    return parts.scheme == "unix" or unquote(host).startswith("/")


def _guessable(url: str, variable: str) -> str | None:
    parts = urlsplit(url)
    password = unquote(parts.password or "")
    if (
        len(password) >= SHORTEST
        and password.lower() not in TRIED_FIRST
        and password != parts.username
    ):
        return None
    return (
        f"The password in {variable} is short, or one that anybody would try first. Set a long"
        " random one: openssl rand -hex 24."
    )

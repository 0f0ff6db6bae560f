"""`doctor`: what this installation needs, checked one by one."""

import json
import os
import platform
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import typer

from xalen_batch.cli import connection, database, installation
from xalen_batch.cli.failures import ERROR, Failed
from xalen_batch.cli.findings import Check, Doubtful, Skipped, Wrong, check
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import grid, print_json, show

if TYPE_CHECKING:
    from xalen_batch.catalog import Model

commands = typer.Typer()

BACKEND_TIMEOUT = 3.0
LONGEST_LISTING = 4 * 1024 * 1024
# Of a backend's models, so many are named, each cut to so many characters.
MOST_NAMES, LONGEST_NAME = 10, 80
# It is told before new work stops: when there is less than so many times the floor.
EARLY = 5
# A backend that is away is no fault of the installation: nothing is lost, and test keys need none.
WAITING = "Live requests to this model wait until that is put right."

# By the kind of a backend that is no server.
NO_SERVER = {
    None: (
        "The catalog names no server: live batches of this model are refused. Set base_url in"
        " [models.{}.backend]."
    ),
    "simulated": (
        'kind = "simulated" in [models.{}.backend]: live keys of accounts that `xalen-batch'
        " accounts simulation` allows get simulated answers, and pay for them. Live batches of all"
        " others are refused."
    ),
}


@commands.command(
    rich_help_panel="Server", epilog=examples("xalen-batch doctor", "xalen-batch doctor --json")
)
def doctor(as_json: Json = False) -> None:
    """Check Python, the data folder, the stores, the catalog and every backend.

    Exit 1 if something is wrong.
    """
    checks = list(_checks())
    is_ok = all(check.status != "failed" for check in checks)
    if as_json:
        print_json({"ok": is_ok, "checks": [asdict(check) for check in checks]})
    else:
        show(
            grid(
                ("check", "status", "finding"),
                ((check.name, check.status, check.detail) for check in checks),
            )
        )
    if not is_ok:
        raise typer.Exit(ERROR)


def _checks() -> Iterator[Check]:
    yield check("python", _python)
    yield check("data folder", _data_folder)
    settings = check("settings", _settings)
    yield settings
    if settings.status == "failed":
        # Every other check reads them.
        return
    found = check("database", _database)
    yield found
    yield check(
        "database needs", partial(installation.database_needs, has_database=found.status == "ok")
    )
    yield check("migrations", partial(_migrations, has_database=found.status == "ok"))
    yield check("rights", partial(installation.rights, has_database=found.status == "ok"))
    queue = check("redis", _redis)
    yield queue
    yield check(
        "passwords",
        partial(_passwords, has_stores=found.status == "ok" and queue.status in ("ok", "warning")),
    )
    yield check("storage", _storage)
    yield check("store mark", partial(installation.store_mark, has_database=found.status == "ok"))
    yield check("workers", partial(installation.workers, has_database=found.status == "ok"))
    yield check(
        "open batches", partial(installation.open_batches, has_database=found.status == "ok")
    )
    yield check("disk space", _disk_space)
    yield check("catalog", _catalog)
    yield check("prices", partial(_prices, has_database=found.status == "ok"))
    for model in _models():
        yield check(f"backend of {model.id}", partial(_backend, model))


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _data_folder() -> str:
    folder = connection.data_dir()
    if not folder.exists():
        raise Doubtful(f"{folder} is not there. `xalen-batch up` makes it.")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise Wrong(f"{folder} cannot be read and written by this user.")
    if stat.S_IMODE(folder.stat().st_mode) & stat.S_IRWXO:
        raise Wrong(f"{folder} is open to every user of this machine: chmod 700 {folder}")
    for name, what in (("credentials.toml", "keys"), ("run.toml", "passwords")):
        secret = folder / name
        if secret.exists() and stat.S_IMODE(secret.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
            raise Wrong(f"{secret} holds {what} that others can read: chmod 600 {secret}")
    return str(folder.absolute())


def _settings() -> str:
    from xalen_batch import catalog
    from xalen_batch.config import Settings

    # Not the cached ones: the address of a running `up` is yet to come into the environment.
    Settings()
    # The names of the catalog's keys are settings too. Reading it caches the settings, so the
    # address of a running `up` comes first.
    with suppress(Failed):
        database.find()
    if unknown := catalog.unknown_settings():
        names = ", ".join(
            f"{name} (did you mean {meant}?)" if meant else name for name, meant in unknown.items()
        )
        raise Doubtful(
            f"Nothing reads {names}: correct the name, or unset it. docs/reference/settings.md"
            " lists every setting."
        )
    return "valid"


def _database() -> str:
    database.find()
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    from xalen_batch import db

    try:
        with db.engine().connect() as session:
            version = session.scalar(text("SHOW server_version"))
    except OperationalError as error:
        raise Wrong(
            f"It does not answer: {_first_line(error.orig or error)}."
            f" {_remedy('XALEN_DATABASE_URL')}"
        ) from error
    except (SQLAlchemyError, ValueError):
        # What the libraries say here can quote the password.
        raise Wrong(
            "XALEN_DATABASE_URL cannot be used. It looks like"
            " postgresql://user:password@host:5432/name."
        ) from None
    return f"PostgreSQL {version}"


def _migrations(has_database: bool) -> str:
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


def _redis() -> str:
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
            f"It answers and cannot be written to: {_first_line(error)}. {remedies}"
        ) from error
    except redis.RedisError as error:
        raise Wrong(
            f"It does not answer: {_first_line(error)}. {_remedy('XALEN_REDIS_URL')}"
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


def _passwords(has_stores: bool) -> str:
    if not has_stores:
        raise Skipped("not checked: a store is missing")
    from xalen_batch import broker, db
    from xalen_batch.cli import passwords

    addresses = db.url().replace("+psycopg", "", 1), broker.url()
    if findings := [
        finding
        for finding in (passwords.of_database(addresses[0]), passwords.of_redis(addresses[1]))
        if finding
    ]:
        raise Doubtful(" ".join(findings))
    return (
        "local sockets, no password needed"
        if all(map(passwords.is_local_socket, addresses))
        else "asked for, and none that is tried first"
    )


def _storage() -> str:
    from xalen_batch import storage
    from xalen_batch.config import settings

    if not storage.folder().exists():
        raise Doubtful(
            f"{storage.folder()} is not there. `xalen-batch up` and `xalen-batch api` make it."
        )
    storage.check()
    if stat.S_IMODE(storage.folder().stat().st_mode) & stat.S_IRWXO:
        raise Doubtful(
            f"{storage.folder()} holds uploads that every user of this machine can read: chmod 700"
            f" {storage.folder()}"
        )
    return settings().storage


def _disk_space() -> str:
    from xalen_batch import disk
    from xalen_batch.config import GiB, settings
    from xalen_batch.standalone import stores

    disk.watch_database(stores.database_folder)
    floor, found = settings().min_free_bytes, disk.spaces()
    left = "; ".join(
        f"{space.free / GiB:,.1f} GiB for the {space.store} in {space.folder}" for space in found
    )
    remedy = (
        f"Below {floor / GiB:,.1f} GiB (XALEN_MIN_FREE_BYTES) no new work is taken: free space, or"
        " delete files that are not needed."
    )
    least = min(space.free for space in found)
    if least < floor:
        raise Wrong(f"{left}. {remedy}")
    if least < EARLY * floor:
        raise Doubtful(f"{left}. {remedy}")
    return left


def _catalog() -> str:
    from xalen_batch import catalog

    return f"{', '.join(catalog.models())}, of {catalog.source()}"


def _prices(has_database: bool) -> str:
    if not has_database:
        raise Skipped("not checked: no database")
    from xalen_batch import db, migrate
    from xalen_batch.billing import prices

    if not migrate.is_usable():
        raise Skipped("not checked: the database needs a migration")
    with db.reading() as session:
        unpriced, changes = prices.unpriced(session), prices.differences(session)
    remedy = (
        "`xalen-batch prices sync` shows the differences and puts the catalog's prices in force."
    )
    if unpriced:
        raise Doubtful(
            f"Batches that name {', '.join(unpriced)} are refused, for want of a price in force."
            f" {remedy}"
        )
    if changes:
        models = ", ".join(sorted({change.model for change in changes}))
        raise Doubtful(
            f"Prices in force differ from the catalog's ({models}); new batches pay those in force."
            f" {remedy}"
        )
    return "those of the catalog"


def _models() -> "list[Model]":
    from xalen_batch import catalog
    from xalen_batch.errors import ConfigError

    try:
        return list(catalog.models().values())
    except ConfigError:
        # The catalog's own check tells.
        return []


def _backend(model: "Model") -> str:
    config = model.backend
    if config.kind != "openai":
        raise Doubtful(NO_SERVER[config.kind].format(model.id))
    url = config.base_url or ""
    if not _is_address(url):
        raise Wrong(
            f"base_url of models.{model.id}.backend in the catalog is {url or 'not set'}. It looks"
            " like http://host:8000/v1."
        )
    key = os.environ.get(config.api_key_env, "").strip() if config.api_key_env else ""
    unset = (
        f" {config.api_key_env}, which is to hold its key, is not set."
        if config.api_key_env and not key
        else ""
    )
    try:
        status, listing = _listing(
            Request(
                f"{url.rstrip('/')}/models",
                headers={"Authorization": f"Bearer {key}"} if key else {},
            )
        )
    except (OSError, HTTPException) as error:
        raise Doubtful(f"{url} cannot be reached: {_reason(error)}.{unset} {WAITING}") from error
    except ValueError:
        # What the library says here quotes the key.
        raise Wrong(
            f"The key in {config.api_key_env} has characters that no HTTP header can carry."
        ) from None
    if status in (401, 403):
        finding = (
            f"refuses the key in {config.api_key_env}."
            if key
            else f"asks for a key.{unset or ' The catalog names no api_key_env.'}"
        )
        raise Doubtful(f"{url} {finding} {WAITING}")
    if status >= 500:
        raise Doubtful(f"{url} answers with status {status}; its log tells why.{unset}")
    if (
        key
        and urlsplit(url).scheme == "http"
        and urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1")
    ):
        raise Doubtful(
            f"{url} answers, and the key in {config.api_key_env} goes there unencrypted. Use"
            " https:// where others share the network."
        )
    _has_model(model, url, listing)
    # Any other status will do: a reranking server need not list its models.
    return f"{url} answers.{unset}" if unset else url


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _listing(asked: Request) -> tuple[int, bytes]:
    """The status, and of a 200 as much of the body as any listing has."""
    try:
        with urlopen(asked, timeout=BACKEND_TIMEOUT) as answer:
            return int(answer.status), answer.read(LONGEST_LISTING)
    except HTTPError as error:
        with error:
            return error.code, b""


def _has_model(model: "Model", url: str, listing: bytes) -> None:
    """Raises Doubtful where a server lists its models, and not by the name that requests carry."""
    try:
        names = [str(entry["id"]) for entry in json.loads(listing)["data"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    sent = model.backend.model or model.id
    # Ollama takes a name without its tag for the latest.
    if not names or sent in names or f"{sent}:latest" in names:
        return
    shown = ", ".join(name[:LONGEST_NAME] for name in names[:MOST_NAMES]) + (
        f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    )
    raise Doubtful(
        f"{url} does not list {sent}, the name that requests carry. It has {shown}. Set"
        f" models.{model.id}.backend.model in the catalog to one of them; a server that refuses the"
        " name makes live requests wait."
    )


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or _first_line(cause)


def _first_line(error: object) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def _remedy(variable: str) -> str:
    return f"Start it (`xalen-batch up` starts its own), or correct {variable}."

"""`doctor`: what this installation needs, checked one by one."""

import os
import platform
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import typer

from xalen_batch.cli import connection, database
from xalen_batch.cli.failures import ERROR, describe
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import grid, print_json, show

if TYPE_CHECKING:
    from xalen_batch.catalog import Model

commands = typer.Typer()

BACKEND_TIMEOUT = 3.0
OLDEST_POSTGRESQL = 14
# A backend that is away is no fault of the installation: nothing is lost, and test keys need none.
WAITING = "Live requests to this model wait until that is put right."


@dataclass(frozen=True)
class Check:
    name: str
    status: Literal["ok", "warning", "failed"]
    detail: str


class Wrong(Exception):
    """A check's finding: what is wrong, and what to do."""


class Doubtful(Wrong):
    """It works, and should be better."""


@commands.command(rich_help_panel="Server", epilog=examples("xalen-batch doctor", "xalen-batch doctor --json"))
def doctor(as_json: Json = False) -> None:
    """Check Python, the data folder, the stores, the catalog and every backend. Exit 1 if something is wrong."""
    checks = [_check(name, look) for name, look in _checks()]
    is_ok = all(check.status != "failed" for check in checks)
    if as_json:
        print_json({"ok": is_ok, "checks": [asdict(check) for check in checks]})
    else:
        show(grid(("check", "status", "finding"), ((check.name, check.status, check.detail) for check in checks)))
    if not is_ok:
        raise typer.Exit(ERROR)


def _checks() -> Iterator[tuple[str, Callable[[], str]]]:
    yield "python", _python
    yield "data folder", _data_folder
    yield "database", _database
    yield "migrations", _migrations
    yield "redis", _redis
    yield "storage", _storage
    yield "catalog", _catalog
    for model in _live_models():
        yield f"backend of {model.id}", partial(_backend, model)


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", look())
    except Doubtful as finding:
        return Check(name, "warning", str(finding))
    except Exception as error:
        return Check(name, "failed", str(error) if isinstance(error, Wrong) else describe(error))


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
    secret = folder / "credentials.toml"
    if secret.exists() and stat.S_IMODE(secret.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        raise Wrong(f"{secret} holds keys that others can read: chmod 600 {secret}")
    return str(folder.absolute())


def _database() -> str:
    database.find()
    from sqlalchemy import text

    from xalen_batch import db

    with db.engine().connect() as session:
        version = session.scalar(text("SHOW server_version"))
    if int(str(version).partition(".")[0]) < OLDEST_POSTGRESQL:
        raise Wrong(f"PostgreSQL {version} is too old; {OLDEST_POSTGRESQL} or later is needed.")
    return f"PostgreSQL {version}"


def _migrations() -> str:
    database.find()
    from xalen_batch import schema

    found, needed = schema.found(), schema.needed()
    if found != needed:
        raise Wrong(f"The database is at {found or 'no revision'}, and {needed} is needed: xalen-batch migrate")
    return f"at {found}"


def _redis() -> str:
    database.find()
    from xalen_batch import broker

    server = broker.ping()
    name = f"{server.get('server_name', 'redis')} {server.get('valkey_version') or server.get('redis_version')}"
    if server.get("maxmemory_policy") != "noeviction":
        raise Wrong(f"{name} may evict queued messages: set its maxmemory-policy to noeviction.")
    if not server.get("aof_enabled"):
        raise Doubtful(f"{name} forgets its queue when it is killed; work then starts later. Set appendonly to yes.")
    return name


def _storage() -> str:
    import obstore

    from xalen_batch import storage
    from xalen_batch.config import settings

    if not storage.folder().exists():
        raise Doubtful(f"{storage.folder()} is not there. `xalen-batch up` and `xalen-batch api` make it.")
    obstore.put(storage.store(), "health/doctor", b"ok")
    storage.delete("health/doctor")
    return settings().storage


def _catalog() -> str:
    from xalen_batch import catalog

    return ", ".join(catalog.models())


def _live_models() -> "list[Model]":
    from xalen_batch import catalog
    from xalen_batch.errors import ConfigError

    try:
        return [model for model in catalog.models().values() if model.backend.kind == "openai"]
    except ConfigError:
        # The catalog's own check tells.
        return []


def _backend(model: "Model") -> str:
    config = model.backend
    if not config.base_url:
        raise Wrong(f"models.{model.id}.backend has no base_url in the catalog.")
    key = os.environ.get(config.api_key_env, "") if config.api_key_env else ""
    unset = f" {config.api_key_env}, which is to hold its key, is not set." if config.api_key_env and not key else ""
    asked = Request(f"{config.base_url.rstrip('/')}/models", headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urlopen(asked, timeout=BACKEND_TIMEOUT):
            return config.base_url + (f", which asks for no key;{unset}" if unset else "")
    except HTTPError as error:
        if error.code in (401, 403):
            raise Doubtful(
                f"{config.base_url} refuses the key in {config.api_key_env or 'the request (none is configured)'}. {WAITING}"
            ) from error
        if error.code >= 500:
            raise Doubtful(f"{config.base_url} answers with status {error.code}. {WAITING}") from error
        # A reranking server need not list its models; it is there.
        return config.base_url
    except (URLError, OSError) as error:
        raise Doubtful(f"{config.base_url} cannot be reached: {getattr(error, 'reason', error)}.{unset} {WAITING}") from error

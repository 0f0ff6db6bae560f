"""`credentials.toml`: the address and the API keys that the CLI and the examples use by default.

The first start writes it.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from sqlalchemy import select
from sqlalchemy.orm import Session

from xalen_batch.accounts import accounts, audit, sessions
from xalen_batch.accounts import keys as api_keys
from xalen_batch.accounts.accounts import Owner, Scope
from xalen_batch.errors import ConfigError, Unauthenticated
from xalen_batch.models import Account

ACCOUNT = "default"


@dataclass(frozen=True, slots=True)
class Credentials:
    base_url: str
    test_key: str = field(repr=False)
    live_key: str = field(repr=False)


def keys(session: Session, path: Path) -> dict[str, str]:
    """`test_key` and `live_key`: those of the file, or new ones if this database has them not."""
    found = _read(path)
    working = {name: _working(session, found.get(name)) for name in ("test_key", "live_key")}
    # Trying the keys has signed the session as their account; sign what follows as the system.
    audit.sign(session, audit.SYSTEM)
    return {
        name: secret or _new(session, livemode=name == "live_key")
        for name, secret in working.items()
    }


def sign_in_link(session: Session, credentials: Credentials) -> str:
    """The address that signs a browser in to the console once, in test mode."""
    caller = accounts.authenticate(session, credentials.test_key)
    origin = credentials.base_url.removesuffix("/v1")
    return f"{origin}/console/sign-in/{sessions.link(session, caller)}"


def write(path: Path, credentials: Credentials) -> None:
    write_private(
        path,
        "# Written by `xalen-batch up`. Whoever has these keys can submit batches in your name.",
        asdict(credentials),
    )


def write_private(path: Path, comment: str, values: Mapping[str, str]) -> None:
    """Replace a TOML file in one step; only its owner may read it."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with open(
        os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as out:
        out.write(f"{comment}\n{tomli_w.dumps(values)}")
        out.flush()
        os.fsync(out.fileno())
    new.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}. Repair it, or remove it to get new keys."
        ) from error


def _working(session: Session, secret: Any) -> str | None:
    try:
        accounts.authenticate(session, str(secret))
    except Unauthenticated:
        return None
    return str(secret)


def _new(session: Session, *, livemode: bool) -> str:
    account = session.scalar(select(Account).where(Account.name == ACCOUNT)) or accounts.create(
        session, ACCOUNT
    )
    # All scopes: a reader of this file can also read the database's password beside it, so a key
    # with fewer rights would protect nothing.
    _, secret = api_keys.create(session, Owner(account.id, livemode), name="up", scopes=Scope)
    return secret

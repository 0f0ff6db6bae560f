"""Finds the address and the key of the API, in options, the environment or `credentials.toml`.

A key is sent only to the address of its own source (docs/decisions/0029).
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from xalen_batch.cli.failures import AUTH, ERROR, USAGE, Failed

DEFAULT_BASE_URL = "http://127.0.0.1:8080/v1"
TEST_PREFIX, LIVE_PREFIX = "xln_test_", "xln_live_"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class ApiConnection:
    """An address with its key. `base_url` ends in the API version, without a slash."""

    base_url: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ConnectionSource:
    """A place with an address, a key or both, and the names of both there."""

    address_name: str
    key_name: str
    base_url: str | None
    key: str | None = field(repr=False)


DEFAULT_DATA_DIR = Path(".xalen")


def data_dir() -> Path:
    """The data folder. Not read through `settings()`, so that client commands load no settings."""
    return Path(os.environ.get("XALEN_DATA_DIR") or DEFAULT_DATA_DIR)


def find(base_url: str | None, api_key: str | None, live: bool) -> ApiConnection:
    """The connection to use.

    Failed (exit 4) without a key, or if key and address are from two sources.
    """
    sources = _sources(base_url, api_key, os.environ, _credentials(), live=live)
    if not sources:
        raise Failed(
            f"No API key: {data_dir() / 'credentials.toml'} has none. Start `xalen-batch up` in"
            " this folder, set XALEN_DATA_DIR to the folder on which it runs, or set XALEN_API_KEY"
            " and XALEN_BASE_URL. OPENAI_API_KEY counts if it begins with `xln_`.",
            AUTH,
        )
    found = choose(sources)
    if live and found.key.startswith(TEST_PREFIX):
        raise Failed(
            "--live was asked for, but the key in force is a test key. Unset it, or give a live"
            " one.",
            AUTH,
        )
    return found


def is_known(base_url: str | None, api_key: str | None, live: bool) -> bool:
    """Whether an option, the environment or `credentials.toml` names a server."""
    return bool(_sources(base_url, api_key, os.environ, _credentials(), live=live))


def is_asked_for(base_url: str | None, api_key: str | None) -> bool:
    """Whether an option or the environment names a server.

    `credentials.toml` names the last one, which may not run now.
    """
    return bool(_sources(base_url, api_key, os.environ, {}, live=False))


def _sources(
    base_url: str | None,
    api_key: str | None,
    environment: Mapping[str, str],
    saved: Mapping[str, Any],
    *,
    live: bool,
) -> list[ConnectionSource]:
    """All sources with an address or a key, in order of precedence."""
    openai_key = environment.get("OPENAI_API_KEY")
    # Not a key of ours: this pair of variables belongs to another service, so ignore both.
    is_foreign = bool(openai_key) and not str(openai_key).strip().startswith(
        (TEST_PREFIX, LIVE_PREFIX)
    )
    openai = (None, None) if is_foreign else (environment.get("OPENAI_BASE_URL"), openai_key)
    file = str(data_dir() / "credentials.toml")
    saved_key = saved.get("live_key" if live else "test_key")
    found = [
        ConnectionSource("--base-url", "--api-key", _text(base_url), _text(api_key)),
        ConnectionSource(
            "XALEN_BASE_URL",
            "XALEN_API_KEY",
            _text(environment.get("XALEN_BASE_URL")),
            _text(environment.get("XALEN_API_KEY")),
        ),
        ConnectionSource("OPENAI_BASE_URL", "OPENAI_API_KEY", *map(_text, openai)),
        ConnectionSource(
            f"base_url in {file}",
            file,
            _text(saved.get("base_url")) if saved_key else None,
            _text(saved_key),
        ),
    ]
    return [source for source in found if source.base_url or source.key]


def choose(sources: Sequence[ConnectionSource]) -> ApiConnection:
    """The key and address of the first source; or its address, with the key of another source.

    Failed if a key would be sent to an address that its own source does not name.
    """
    first, *others = sources
    address = first.base_url and _normal(first.base_url, first.address_name)
    if not address:
        raise Failed(_without_address(first, others), AUTH)
    if first.key:
        return ApiConnection(address, _checked(first.key, first.key_name))
    for other in others:
        if other.key and other.base_url and _identity(other.base_url) == _identity(address):
            # Use the spelling of the key's own source: [::1] may be the server of another user than
            # 127.0.0.1.
            return ApiConnection(
                _normal(other.base_url, other.address_name), _checked(other.key, other.key_name)
            )
    raise Failed(_without_key(first, address, others), AUTH)


def _without_address(first: ConnectionSource, others: Sequence[ConnectionSource]) -> str:
    known = next((other for other in others if other.base_url), None)
    such = (
        f" ({known.address_name} has {_shown(known.base_url)}, if that is the one)"
        if known
        else f", such as {DEFAULT_BASE_URL}"
    )
    return (
        f"{first.key_name} gives a key and {first.address_name} no address: set"
        f" {first.address_name} to the server of that key{such}."
    )


def _without_key(first: ConnectionSource, address: str, others: Sequence[ConnectionSource]) -> str:
    elsewhere = "".join(
        f" The key of {other.key_name} is sent to"
        f" {_shown(other.base_url) if other.base_url else other.address_name} alone."
        for other in others
        if other.key
    )
    remedy = f"Set {first.key_name} to a key of that server, or "
    remedy += (
        "leave --base-url out."
        if first.address_name.startswith("--")
        else f"unset {first.address_name}."
    )
    return (
        f"{first.address_name} decides where the API is, {address}, and no key was given for"
        f" it.{elsewhere} {remedy}"
    )


def _text(value: object) -> str | None:
    return str(value).strip() or None if value is not None else None


def _checked(key: str, name: str) -> str:
    if key.isascii() and key.isprintable() and " " not in key:
        return key
    raise Failed(f"The key of {name} has characters that no key has. Copy it once more.", AUTH)


def _credentials() -> dict[str, Any]:
    path = data_dir() / "credentials.toml"
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Failed(f"{path} cannot be read: {error}") from error


def _normal(base_url: str, name: str) -> str:
    parts = _parsed(base_url)
    if parts is None:
        # An address may contain a password.
        shown = "" if "@" in base_url else f": {base_url!r}"
        looks = (
            f"http://{base_url}"
            if "://" not in base_url and _parsed(f"http://{base_url}")
            else DEFAULT_BASE_URL
        )
        raise Failed(
            f"{name} is not an address of an API{shown}. It looks like {looks}",
            USAGE if name.startswith("--") else ERROR,
        )
    if "@" in parts.netloc:
        raise Failed(
            f"{name} has a user name or password in it. Leave them out: the API knows you by your"
            " key alone."
        )
    return urlunsplit((parts.scheme, parts.netloc, _path(parts), "", ""))


def _path(parts: SplitResult) -> str:
    """The path of an address without repeated or trailing slashes; `/v1` if it has none."""
    return re.sub("/+", "/", parts.path).rstrip("/") or "/v1"


def _parsed(base_url: str) -> SplitResult | None:
    try:
        parts = urlsplit(base_url)
        is_whole = parts.scheme in PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    # Refuse ambiguous addresses: urlsplit drops some blanks, and browsers read a backslash as a
    # slash.
    is_plain = base_url.isprintable() and not set(base_url) & set(" \\?#")
    return parts if is_whole and is_plain else None


def _identity(base_url: str) -> tuple[str, str, int, str] | None:
    """A key that is equal for all spellings of one address."""
    parts = _parsed(base_url)
    if parts is None or not parts.hostname:
        return None
    host = "loopback" if parts.hostname in LOOPBACK else parts.hostname
    return parts.scheme, host, parts.port or PORTS[parts.scheme], _path(parts)


def _shown(base_url: str | None) -> str:
    parts = _parsed(base_url or "")
    return base_url or "" if parts and "@" not in parts.netloc else "an address that is not valid"

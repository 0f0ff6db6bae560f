"""Finds the address of the API and its key: in arguments, the environment or `credentials.toml`.

A key is sent only to an address that its own source names, or that the caller names with it. No
`OPENAI_` variable is read: its key belongs to another service.
"""

import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit, urlunsplit

from openai import OpenAIError

ApiKey = str | Callable[[], object]

BASE_URL, API_KEY, DATA_DIR = "XALEN_BASE_URL", "XALEN_API_KEY", "XALEN_DATA_DIR"
DEFAULT_DATA_DIR = ".xalen"
CREDENTIALS = "credentials.toml"
EXAMPLE = "http://127.0.0.1:8080/v1"
TEST_PREFIX = "xln_test_"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORTS = {"http": 80, "https": 443}


class Connection(NamedTuple):
    """An address, with the version of the API and without a trailing slash, and its key."""

    base_url: str
    api_key: ApiKey


class _Saved(NamedTuple):
    """What `xalen-batch up` has written into `credentials.toml`; None where it has nothing."""

    path: Path
    base_url: str | None
    keys: Mapping[str, str]


def find(base_url: str, api_key: ApiKey | None, *, live: bool = False) -> Connection:
    """The address and the key to use; an empty one is looked for.

    OpenAIError if one of them is not found, or if they do not belong together.
    """
    saved = _saved()
    key, key_source = _key(api_key, saved, live=live)
    if live and isinstance(key, str) and key.startswith(TEST_PREFIX):
        raise OpenAIError(f"live=True, but {key_source} is a test key. Give a live key.")
    address, address_source = _address(base_url, key, key_source, saved)
    if key_source == API_KEY:
        _refuse_elsewhere(address, address_source, os.environ.get(BASE_URL), key_source)
    elif key_source == str(saved.path):
        if saved.base_url is None:
            raise OpenAIError(f"{saved.path} has a key and no base_url. Run `xalen-batch up`.")
        _refuse_elsewhere(address, address_source, saved.base_url, key_source)
        # The spelling of the key's own source: [::1] may be another user's server.
        address = saved.base_url
    return Connection(_normal(address, address_source), key)


def _key(api_key: ApiKey | None, saved: _Saved, *, live: bool) -> tuple[ApiKey, str]:
    """The key, and the name of its source."""
    if api_key:
        return api_key, "api_key"
    if key := os.environ.get(API_KEY, "").strip():
        return key, API_KEY
    if key := saved.keys.get("live_key" if live else "test_key", ""):
        return key, str(saved.path)
    raise OpenAIError(
        f"No API key. Pass api_key, set {API_KEY}, or start `xalen-batch up` in this folder, which"
        f" writes {saved.path}; {DATA_DIR} names another folder. OPENAI_API_KEY is not read."
    )


def _address(base_url: str | None, key: ApiKey, key_source: str, saved: _Saved) -> tuple[str, str]:
    """The address, and the name of its source."""
    if base_url:
        return base_url, "base_url"
    if address := os.environ.get(BASE_URL, "").strip():
        return address, BASE_URL
    if saved.base_url is None:
        raise OpenAIError(
            f"No address for {key_source}. Pass base_url, such as {EXAMPLE}, set {BASE_URL}, or"
            f" start `xalen-batch up` in this folder, which writes {saved.path}."
            " OPENAI_BASE_URL is not read."
        )
    # A folder from elsewhere may hold a file that names somebody's server.
    is_here = (urlsplit(saved.base_url).hostname or "") in LOOPBACK
    if not is_here and key not in saved.keys.values():
        raise OpenAIError(
            f"{saved.path} names {saved.base_url} for its own keys, and {key_source} is another"
            f" one. Pass base_url or set {BASE_URL}."
        )
    return saved.base_url, str(saved.path)


def _refuse_elsewhere(address: str, source: str, own: str | None, key_source: str) -> None:
    """OpenAIError if the key's own source names another address than the one in use."""
    if own and _identity(address) != _identity(own):
        raise OpenAIError(
            f"{source} is {address}, and the key of {key_source} is sent to {own} alone. Pass"
            " api_key with the key of that server."
        )


def _saved() -> _Saved:
    path = Path(os.environ.get(DATA_DIR) or DEFAULT_DATA_DIR) / CREDENTIALS
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        found = {}
    except (OSError, ValueError) as error:
        raise OpenAIError(f"{path} cannot be read: {error}") from error
    keys = {name: str(found[name]) for name in ("test_key", "live_key") if found.get(name)}
    return _Saved(path, str(found["base_url"]) if found.get("base_url") else None, keys)


def _normal(address: str, source: str) -> str:
    parts = _parsed(address)
    if parts is None:
        raise OpenAIError(f"{source} is not an address of an API. It looks like {EXAMPLE}")
    return urlunsplit((parts.scheme, parts.netloc, _path(parts), parts.query, ""))


def _parsed(address: str) -> SplitResult | None:
    try:
        parts = urlsplit(address)
        is_whole = parts.scheme in PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    # The API knows its callers by their keys alone.
    return parts if is_whole and "@" not in parts.netloc else None


def _path(parts: SplitResult) -> str:
    return parts.path.rstrip("/") or "/v1"


def _identity(address: str) -> tuple[str, str, int, str] | None:
    """A value that is equal for all spellings of one address."""
    parts = _parsed(address)
    if parts is None or not parts.hostname:
        return None
    host = "loopback" if parts.hostname in LOOPBACK else parts.hostname
    return parts.scheme, host, parts.port or PORTS[parts.scheme], _path(parts)

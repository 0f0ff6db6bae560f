"""Where the API is and which key opens it: options, then the environment, then `credentials.toml`."""

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from xalen_batch.cli.failures import AUTH, Failed

DEFAULT_BASE_URL = "http://127.0.0.1:8080/v1"
TEST_PREFIX, LIVE_PREFIX = "xln_test_", "xln_live_"


@dataclass(frozen=True)
class Connection:
    """`base_url` ends in the API's version, without a slash."""

    base_url: str
    key: str = field(repr=False)


DEFAULT_DATA_DIR = Path(".xalen")


def data_dir() -> Path:
    """The data folder. Read here so that a client command need not load every setting."""
    return Path(os.environ.get("XALEN_DATA_DIR") or DEFAULT_DATA_DIR)


def find(base_url: str | None, api_key: str | None, live: bool) -> Connection:
    """The connection to use; Failed (exit 4) when there is no key."""
    environment = os.environ
    saved = _credentials()
    base_url = base_url or environment.get("XALEN_BASE_URL") or environment.get("OPENAI_BASE_URL") or saved.get("base_url")
    key = api_key or environment.get("XALEN_API_KEY") or _own_key(environment.get("OPENAI_API_KEY"))
    if key is None:
        key = saved.get("live_key" if live else "test_key")
    elif live and key.startswith(TEST_PREFIX):
        raise Failed("--live was asked for, but the key in force is a test key. Unset it, or give a live one with --api-key.", AUTH)
    if not key:
        raise Failed(
            f"No API key: {data_dir() / 'credentials.toml'} has none. Start `xalen-batch up` in this folder, "
            "set XALEN_DATA_DIR to the folder on which it runs, or set XALEN_API_KEY (and XALEN_BASE_URL).",
            AUTH,
        )
    return Connection(_normal(base_url or DEFAULT_BASE_URL), key)


def _own_key(key: str | None) -> str | None:
    """OPENAI_API_KEY where it is one of ours: the key of another service must not leave for this one."""
    return key if key and key.startswith((TEST_PREFIX, LIVE_PREFIX)) else None


def _credentials() -> dict[str, Any]:
    path = data_dir() / "credentials.toml"
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Failed(f"{path} cannot be read: {error}") from error


def _normal(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Failed(f"{base_url} is not an address of an API. It looks like {DEFAULT_BASE_URL}")
    stripped = base_url.rstrip("/")
    return stripped if parts.path.strip("/") else f"{stripped}/v1"

"""A model's entry in the catalog file: made from what its server says, and written atomically."""

import os
import re
import stat
import tempfile
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from xalen_batch.cli.failures import USAGE, Failed

Fields = dict[str, Any]


def name_of(model: str) -> str:
    """The catalog's id of a server's model, without its folder and its file type.

    `Qwen/Qwen3-8B` is qwen3-8b, `gemma.Q4_K_M.gguf` is gemma.q4_k_m, `llama3.2:latest` is llama3.2.
    """
    last = model.rstrip("/").rpartition("/")[2].lower()
    return last.removesuffix(".gguf").removesuffix(":latest") or model


def prices_of(text: str | None) -> dict[str, str]:
    """The components of `--price input=0.02,output=0.04`. Raises Failed."""
    found = {}
    for part in filter(None, (text or "").split(",")):
        component, equals, price = (word.strip() for word in part.partition("="))
        if not equals or not re.fullmatch(r"\d+(\.\d+)?", price):
            raise Failed(
                f"--price {part}: a price looks like input=0.02,output=0.04, in USD per 1M tokens.",
                USAGE,
            )
        found[component] = price
    return found


def read(path: Path) -> dict[str, Any]:
    """The operator's file; empty if there is none. Raises Failed for a broken one."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Failed(f"{path} cannot be read, and was not changed: {error}") from error


def rendered(name: str, fields: Fields) -> str:
    """The entry as TOML."""
    return _with(name, fields, "").lstrip()


def write(path: Path, name: str, fields: Fields) -> None:
    """Put the entry into the file, with everything else in it as it was. Raises Failed.

    The file is replaced by a rename, so that a process never reads half of it.
    """
    target = path.resolve()
    try:
        text = target.read_text("utf-8") if target.exists() else ""
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o644
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(_with(name, fields, text))
                file.flush()
                os.fsync(file.fileno())
            # `mkstemp` makes a file for its owner alone; workers may run as another user.
            os.chmod(temporary, mode)
            os.replace(temporary, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise Failed(f"{target} cannot be written: {error.strerror}.") from error


def _with(name: str, fields: Fields, text: str) -> str:
    import tomlkit

    document = tomlkit.parse(text)
    models = document.get("models")
    if models is None:
        models = document["models"] = tomlkit.table(is_super_table=True)
    known = models.get(name)
    entry: Any = tomlkit.table() if known is None else known
    for field, value in fields.items():
        if field == "price":
            prices = tomlkit.inline_table()
            prices.update(value)
            entry[field] = prices
        elif field == "backend":
            backend = tomlkit.table()
            backend.update(value)
            entry[field] = backend
        else:
            entry[field] = value
    if entry is not known:
        models[name] = entry
    return tomlkit.dumps(document)

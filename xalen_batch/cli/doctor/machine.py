"""Checks of `doctor` on this machine: Python, folders, settings and disk space."""

import os
import platform
import stat
from contextlib import suppress

from xalen_batch.cli import connection, database
from xalen_batch.cli.doctor.findings import Doubtful, Wrong
from xalen_batch.cli.failures import Failed

# Warn below this multiple of the floor; below the floor itself, no new work starts.
EARLY = 5


def python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def data_folder() -> str:
    folder = connection.data_dir()
    if not folder.exists():
        raise Doubtful(
            f"{folder} is not there. `xalen-batch up` makes it; if it runs on another folder, name"
            " that with --data-dir."
        )
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise Wrong(f"{folder} cannot be read and written by this user.")
    if stat.S_IMODE(folder.stat().st_mode) & stat.S_IRWXO:
        raise Wrong(f"{folder} is open to every user of this machine: chmod 700 {folder}")
    for name, what in (("credentials.toml", "keys"), ("run.toml", "passwords")):
        secret = folder / name
        if secret.exists() and stat.S_IMODE(secret.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
            raise Wrong(f"{secret} holds {what} that others can read: chmod 600 {secret}")
    return str(folder.absolute())


def settings() -> str:
    from xalen_batch import catalog
    from xalen_batch.config import Settings

    # Not the cached settings: the URLs of a running `up` are added to the environment below.
    Settings()
    # The catalog names environment variables for its keys, which count as settings too. Reading it
    # caches the settings, so the URLs of a running `up` come first.
    with suppress(Failed):
        database.find()
    unknown = catalog.unknown_settings()
    if unknown:
        names = ", ".join(
            f"{name} (did you mean {meant}?)" if meant else name for name, meant in unknown.items()
        )
        raise Doubtful(
            f"Nothing reads {names}: correct the name, or unset it. docs/reference/settings.md"
            " lists every setting."
        )
    return "valid"


def storage() -> str:
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


def disk_space() -> str:
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

"""Disk space: whether the disks that hold files and the database have room for new work.

Free space is known only for folders on this machine: the local folder of the input files, and the
folder of the PostgreSQL that `xalen-batch up` starts. The floor (`XALEN_MIN_FREE_BYTES`) leaves
room to record the lines that are in flight. Below it no new work is accepted or claimed; work
resumes when space is free again.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from xalen_batch import log, storage
from xalen_batch.config import GiB, settings
from xalen_batch.errors import StorageFull

logger = log.get(__name__)

# Seconds for which a measurement is cached.
LOOK_EVERY = 1.0


class Store(StrEnum):
    FILES = "files"
    DATABASE = "database"


@dataclass(frozen=True, slots=True)
class Space:
    """Free bytes on the disk of one store."""

    store: Store
    folder: Path
    free: int

    @property
    def message(self) -> str:
        return (
            f"The disk of the {self.store} has {self.free / GiB:.2f} GiB left; below"
            f" {settings().min_free_bytes / GiB:.2f} GiB no new work is taken."
        )


def _no_folder() -> Path | None:
    return None


_database_folder: Callable[[], Path | None] = _no_folder


def watch_database(folder: Callable[[], Path | None]) -> None:
    """Watch the disk of the database's folder, too, as `folder` returns it at each measurement.

    Entry points call it on the main thread, before they serve or claim. They pass
    `standalone.stores.database_folder`, which returns None for a database on another machine.
    """
    global _database_folder
    _database_folder = folder


def refuse_if_full() -> None:
    """Raise StorageFull while any store has less free space than the floor."""
    shortage = next(iter(short().values()), None)
    if shortage is not None:
        raise StorageFull(
            f"{shortage.message} Nothing was stored. Send it again later, or have the operator free"
            " space."
        )


def short() -> dict[Store, Space]:
    """The stores with less free space than the floor, measured at most once a second."""
    return _short(int(time.monotonic() / LOOK_EVERY))


def spaces() -> list[Space]:
    """The free space of each watched store, measured now."""
    return [Space(store, folder, free(folder)) for store, folder in _folders().items()]


def free(folder: Path) -> int:
    """Bytes that this user may still write to a folder's disk.

    A folder that does not exist yet counts by its nearest parent that does.
    """
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


_was_short: set[Store] = set()


@lru_cache(maxsize=1)
def _short(_: int) -> dict[Store, Space]:
    """The stores below the floor in this second. Logs each store that has changed."""
    global _was_short
    found = spaces()
    now = {space.store: space for space in found if space.free < settings().min_free_bytes}
    for space in found:
        is_short = space.store in now
        if is_short == (space.store in _was_short):
            continue
        tell = logger.error if is_short else logger.warning
        event = "disk.short" if is_short else "disk.has_room"
        tell(event, store=space.store.value, free=space.free)
    _was_short = set(now)
    return now


def _folders() -> dict[Store, Path]:
    folders = {Store.FILES: storage.folder()}
    database = _database_folder()
    if database is not None:
        folders[Store.DATABASE] = database
    return folders

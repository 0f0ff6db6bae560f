"""Disk space: whether the disks that fill with work have room for more; looked at once a second at
most.

Only of what is on this machine can that be known: the local folder of the files, and the PostgreSQL
that `xalen-batch up` starts. New work stops while there is still room for what runs to be recorded,
and goes on by itself when there is room again.
"""

import shutil
import time
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from sqlalchemy import make_url

from xalen_batch import db, log, storage
from xalen_batch.config import GiB, settings
from xalen_batch.errors import StorageFull
from xalen_batch.standalone import stores

logger = log.get(__name__)

LOOK_EVERY = 1.0


class Store(StrEnum):
    FILES = "files"
    DATABASE = "database"


@dataclass(frozen=True, slots=True)
class Space:
    """What is left for a store, in bytes."""

    store: Store
    folder: Path
    free: int

    @property
    def message(self) -> str:
        return (
            f"The disk of the {self.store} has {self.free / GiB:.2f} GiB left; below"
            f" {settings().min_free_bytes / GiB:.2f} GiB no new work is taken."
        )


def refuse_if_full() -> None:
    """StorageFull while any store is short of space."""
    if shortage := next(iter(short().values()), None):
        raise StorageFull(
            f"{shortage.message} Nothing was stored. Send it again later, or have the operator free"
            " space."
        )


def short() -> dict[Store, Space]:
    """The stores that have less left than the settings' floor."""
    return _short(int(time.monotonic() / LOOK_EVERY))


def spaces() -> list[Space]:
    """What is left now for each store of which that can be known."""
    return [Space(store, folder, free(folder)) for store, folder in _folders().items()]


def free(folder: Path) -> int:
    """Bytes that this user may still write; of a folder that is not there, those of the one it will
    be made in.
    """
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


_was_short: set[Store] = set()


@lru_cache(maxsize=1)
def _short(_: int) -> dict[Store, Space]:
    global _was_short
    found = spaces()
    now = {space.store: space for space in found if space.free < settings().min_free_bytes}
    for space in found:
        if space.store in now.keys() ^ _was_short:
            tell = logger.error if space.store in now else logger.warning
            tell(
                "disk.short" if space.store in now else "disk.has_room",
                store=space.store.value,
                free=space.free,
            )
    _was_short = set(now)
    return now


def _folders() -> dict[Store, Path]:
    postgres = settings().data_dir.absolute() / "postgres"
    has_database = settings().database_url is not None
    is_embedded = has_database and make_url(db.url()).query.get("host") == str(
        stores.socket_folder(postgres)
    )
    return {Store.FILES: storage.folder()} | ({Store.DATABASE: postgres} if is_embedded else {})

"""Object storage of input files: a local folder. These functions are what another store would have
to offer.

Keys are ours (a file's id), never a user's name. Writers are atomic: an object exists whole or
not at all, whatever dies in between.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from urllib.parse import unquote, urlparse
from uuid import UUID

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore

from xalen_batch.config import MiB, settings
from xalen_batch.errors import ConfigError

READ_CHUNK = 1 * MiB
# Of each upload that is under way; four times as much is no faster.
WRITE_BUFFER = 1 * MiB
# Reading across a gap of so many bytes costs as much as a second read.
NEAR = 32 * 1024

# The object that tells which database a store belongs to (marks.py).
MARK = "store.id"

# Storage that is gone or does not do what it should.
UNAVAILABLE = (OSError, BaseError)
# No space, a quota that is used up, a file larger than one may be.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def key(file_id: UUID) -> str:
    """Where a file's bytes live."""
    return f"input/{file_id.hex}"


def file_id(key: str) -> UUID | None:
    """The file a key belongs to; None for an object that is not ours."""
    try:
        return UUID(hex=key.rpartition("/")[2])
    except ValueError:
        return None


def folder() -> Path:
    """The local folder that the settings name. It may not be there yet."""
    return Path(unquote(urlparse(settings().storage).path))


@cache
def store() -> ObjectStore:
    """The configured store.

    Its folder, and those above it that are missing, are made for this user alone.
    """
    missing = [path for path in (folder(), *folder().parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    return LocalStore(folder())


def is_full(error: BaseException) -> bool:
    """Whether there was no room for what was written.

    The store hands on the system's number in its words alone.
    """
    said = re.search(r"\(os error (\d+)\)", str(error))
    return (int(said[1]) if said else getattr(error, "errno", None)) in FULL


def check() -> None:
    """Write into the store and leave nothing behind.

    ConfigError, with the reason, when that does not work.
    """
    try:
        store()
        with TemporaryFile(dir=folder()) as probe:
            probe.write(b"ok")
    except OSError as error:
        raise ConfigError(
            f"The storage folder {folder()} cannot be written: {error.strerror}. "
            "Put that right, or set XALEN_STORAGE_URL to another folder, file:///path."
        ) from error


def writer(key: str) -> obstore.AsyncWritableFile:
    """`async with writer(key) as out: await out.write(…)`: an error inside leaves nothing behind."""
    return obstore.open_writer_async(store(), key, buffer_size=WRITE_BUFFER)


def write(key: str, chunks: Iterable[bytes]) -> None:
    """The chunks as one object: an error of theirs leaves nothing behind, and what was there before
    as it was.
    """
    with obstore.open_writer(store(), key, buffer_size=WRITE_BUFFER) as out:
        for chunk in chunks:
            out.write(chunk)


def size(key: str) -> int:
    """An object's bytes. `FileNotFoundError` if it is gone."""
    return int(obstore.head(store(), key)["size"])


def chunks(key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """An object's bytes from an offset on, or up to another, a MiB at a time.

    `FileNotFoundError` if it is gone, or goes meanwhile.
    """
    end = size(key) if end is None else end
    # The store's own stream costs ten times the CPU.
    for begin in range(start, end, READ_CHUNK):
        yield bytes(obstore.get_range(store(), key, start=begin, end=min(end, begin + READ_CHUNK)))


def ranges(key: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
    """Several slices of one object, in this order; those that are near each other are fetched
    together.
    """
    begins: list[int] = []
    ends: list[int] = []
    for offset, length in zip(offsets, lengths, strict=True):
        if begins and 0 <= offset - ends[-1] <= NEAR:
            ends[-1] = offset + length
        else:
            begins.append(offset)
            ends.append(offset + length)
    # Where the slices follow each other, one buffer is cut here: a buffer of the store for each
    # costs more.
    found: list[bytes] = []
    stretches = iter(
        zip(
            begins,
            ends,
            obstore.get_ranges(store(), key, starts=begins, ends=ends, coalesce=NEAR),
            strict=True,
        )
    )
    begin = end = 0
    held = b""
    for offset, length in zip(offsets, lengths, strict=True):
        while not begin <= offset <= offset + length <= end:
            begin, end, buffer = next(stretches)
            held = bytes(buffer)
        found.append(held[offset - begin : offset - begin + length])
    return found


def look(key: str | None) -> tuple[UUID | None, bool]:
    """The store's mark, None if it holds none, and whether it holds an object. `OSError` if its
    folder cannot be read.

    Both are seen through one handle of the folder: a disk that is mounted there meanwhile shows
    neither.
    """
    handle = os.open(folder(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _mark(handle), key is not None and _is_there(key, handle)
    finally:
        os.close(handle)


def _mark(handle: int) -> UUID | None:
    try:
        with open(os.open(MARK, os.O_RDONLY, dir_fd=handle), encoding="ascii") as file:
            return UUID(file.read(64).strip())
    except (FileNotFoundError, ValueError):
        return None


def _is_there(key: str, handle: int) -> bool:
    try:
        os.stat(key, dir_fd=handle)
    except FileNotFoundError:
        return False
    return True


def delete(key: str) -> None:
    """Remove an object; one that is gone already is fine."""
    try:
        obstore.delete(store(), key)
    except FileNotFoundError:
        return


def listing(prefix: str) -> Iterator[tuple[str, datetime]]:
    """Keys under a prefix with the time they were last written."""
    for page in obstore.list(store(), prefix):
        for item in page:
            yield item["path"], item["last_modified"]


def delete_unfinished(prefix: str, *, before: datetime) -> list[str]:
    """Remove what writers left that were killed in the midst of an object: what nobody has written
    to since then. Its names.
    """
    gone = []
    for path in (folder() / prefix).glob("*#*"):
        # Its writer may just be through with it.
        with suppress(FileNotFoundError):
            if datetime.fromtimestamp(path.stat().st_mtime, UTC) < before:
                path.unlink()
                gone.append(path.name)
    return gone

"""Object storage of files: a local folder.

Another store would have to implement these functions. Keys are derived from ids of files, never
from names that users choose. Writes are atomic: after a crash an object is whole or missing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from itertools import islice
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
# Buffer of each running upload; four times as much is no faster.
WRITE_BUFFER = 1 * MiB
# Bytes of a gap between two ranges up to which one read across the gap is cheaper than two reads.
NEAR = 32 * 1024

# The object with the id of the database that the store belongs to (marks.py).
MARK = "store.id"

# Errors of a storage that is missing or fails.
UNAVAILABLE = (OSError, BaseError)
# No space on the disk, no quota left, or a file above the size limit.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def key(file_id: UUID) -> str:
    """The key of an upload's object, or of an assembled input file's."""
    return f"input/{file_id.hex}"


def part_key(part_id: UUID) -> str:
    """The key of the object of an upload's part."""
    return f"parts/{part_id.hex}"


def output_key(file_id: UUID) -> str:
    """The key of the object of a sealed output or error file (frames.py)."""
    return f"output/{file_id.hex}"


def id_of(key: str) -> UUID | None:
    """The id of the file or part that a key belongs to; None for an object that is not ours."""
    try:
        return UUID(hex=key.rpartition("/")[2])
    except ValueError:
        return None


def folder() -> Path:
    """The local folder that the settings name. It may not exist yet."""
    return Path(unquote(urlparse(settings().storage).path))


@cache
def store() -> ObjectStore:
    """The configured store, for any thread.

    Creates the folder and its missing parents, with access for this user only.
    """
    missing = [path for path in (folder(), *folder().parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    return LocalStore(folder())


def is_full(error: BaseException) -> bool:
    """Whether a write failed for lack of space.

    obstore reports the errno only in the text of its message.
    """
    said = re.search(r"\(os error (\d+)\)", str(error))
    return (int(said[1]) if said else getattr(error, "errno", None)) in FULL


def check() -> None:
    """Test a write into the store. Raises ConfigError, with the reason, if it fails."""
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
    """`async with writer(key) as out: await out.write(…)`; an error inside leaves no object."""
    return obstore.open_writer_async(store(), key, buffer_size=WRITE_BUFFER)


def write(key: str, chunks: Iterable[bytes]) -> None:
    """Write chunks as one object. If the iterator raises, an older object stays as it was."""
    with obstore.open_writer(store(), key, buffer_size=WRITE_BUFFER) as out:
        for chunk in chunks:
            out.write(chunk)


def write_digested(key: str, chunks: Iterable[bytes]) -> tuple[int, bytes]:
    """As `write`; returns the bytes that were written and their SHA-256."""
    digest, size = hashlib.sha256(), 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks:
            size += len(chunk)
            digest.update(chunk)
            yield chunk

    write(key, counted())
    return size, digest.digest()


def size(key: str) -> int:
    """The bytes of an object. Raises FileNotFoundError."""
    return int(obstore.head(store(), key)["size"])


def chunks(key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The bytes of an object from `start` until `end`, in chunks of READ_CHUNK.

    Raises FileNotFoundError, also if the object is deleted between two chunks, and OSError if it
    ends before `end`.
    """
    end = size(key) if end is None else end
    for begin in range(start, end, READ_CHUNK):
        yield read(key, begin, min(end, begin + READ_CHUNK))


def read(key: str, start: int, end: int) -> bytes:
    """The bytes of an object from `start` until `end`.

    Raises FileNotFoundError, and OSError if the object ends before `end`.
    """
    # obstore copies the bytes once more, and hands each request to a thread of its own.
    with (folder() / key).open("rb", buffering=0) as file:
        found = os.pread(file.fileno(), end - start, start)
    if len(found) < end - start:
        raise OSError(errno.EIO, f"the object ends before byte {end}", key)
    return found


def ranges(key: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
    """Slices of one object, in the given order. Slices that are NEAR are read together.

    Raises FileNotFoundError.
    """
    begins: list[int] = []
    ends: list[int] = []
    for offset, length in zip(offsets, lengths, strict=True):
        if begins and 0 <= offset - ends[-1] <= NEAR:
            ends[-1] = offset + length
        else:
            begins.append(offset)
            ends.append(offset + length)
    # A merged range is one buffer, which is sliced here: a buffer of the store for each slice would
    # cost more.
    found: list[bytes] = []
    buffers = obstore.get_ranges(store(), key, starts=begins, ends=ends, coalesce=NEAR)
    merged = iter(zip(begins, ends, buffers, strict=True))
    begin = end = 0
    held = b""
    for offset, length in zip(offsets, lengths, strict=True):
        while not begin <= offset <= offset + length <= end:
            begin, end, buffer = next(merged)
            held = bytes(buffer)
        found.append(held[offset - begin : offset - begin + length])
    return found


def look(key: str | None) -> tuple[UUID | None, bool]:
    """The store's mark (None: it has none), and whether it holds the object `key`.

    Both are read through one handle of the folder, so a disk that is mounted in between cannot mix
    two stores. Raises OSError if the folder cannot be read.
    """
    handle = os.open(folder(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _mark(handle), key is not None and _is_there(key, handle)
    finally:
        os.close(handle)


def missing(keys: Iterable[str]) -> list[str]:
    """The keys without an object. Raises OSError if the folder cannot be read."""
    handle = os.open(folder(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        return [key for key in keys if not _is_there(key, handle)]
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
    """Delete an object. Idempotent."""
    # obstore hands each request to a thread of its own.
    (folder() / key).unlink(missing_ok=True)


def listing(prefix: str) -> Iterator[tuple[str, datetime]]:
    """The keys under a prefix, each with the time of its last write."""
    for page in obstore.list(store(), prefix):
        for item in page:
            yield item["path"], item["last_modified"]


def delete_unfinished(prefix: str, *, before: datetime, at_once: int) -> Iterator[list[str]]:
    """Delete temporary files of killed writers, last written before `before`.

    Yields the names of those deleted among the next `at_once` entries of the folder.
    """
    try:
        entries = os.scandir(folder() / prefix)
    except FileNotFoundError:
        return
    with entries:
        while some := list(islice(entries, at_once)):
            gone = []
            for entry in some:
                # A writer that finishes renames its file.
                with suppress(FileNotFoundError):
                    if "#" in entry.name and _last_written(entry) < before:
                        os.unlink(entry)
                        gone.append(entry.name)
            yield gone


def _last_written(entry: os.DirEntry[str]) -> datetime:
    return datetime.fromtimestamp(entry.stat().st_mtime, UTC)

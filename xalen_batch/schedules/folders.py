"""Folders that other parties write to: list their files, and read them. No path leaves the base.

Each folder below the base is opened by name from the folder above (openat), and symbolic links are
never followed (O_NOFOLLOW). A check of a path before its use would be a race (TOCTOU): a party that
may write to the folder can swap a name for a link between check and use.
"""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from xalen_batch.errors import InvalidRequest

# Names of any kind that are read below one folder: more than a night needs, and few enough to be
# listed within the transaction that fires.
MOST_NAMES = 10_000
DEEPEST = 16
UNFINISHED = (".tmp", ".part")

# Errors of opening a name that does not exist, or is a link, a folder or a pipe.
NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO}

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a pipe without a writer would block.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Found(NamedTuple):
    """A file by its path below the folder. A rewritten file has another `version`."""

    path: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder by its path below a base.

    The base is a path without links that only the operator can change.
    """

    base: Path
    below: tuple[str, ...]

    def files(self) -> list[Found]:
        """The regular files in it and in its subfolders, sorted by path.

        Skips hidden and unfinished files, and links. A folder that does not exist has no files.
        InvalidRequest beyond MOST_NAMES names; OSError if the base is unavailable, or the folder is
        a file or cannot be read.
        """
        with ExitStack() as stack:
            base = _base(stack, self.base)
            try:
                folder = _descend(stack, base, self.below)
            except FileNotFoundError:
                return []
            return sorted(_walk(folder, "", iter(range(MOST_NAMES)), DEEPEST))

    def has(self, path: str) -> bool:
        """Whether a regular file has this path below it. OSError if the base is unavailable."""
        try:
            with self.open(path):
                return True
        except OSError as error:
            if error.errno not in NOT_THERE:
                raise
            return False

    @contextmanager
    def open(self, path: str) -> Iterator[FileIO]:
        """The regular file of this path below it, open for reading.

        OSError; its errno is in NOT_THERE if no regular file has this path.
        """
        *folders, name = (*self.below, *path.split("/"))
        with ExitStack() as stack:
            folder = _descend(stack, _base(stack, self.base), folders)
            file = stack.enter_context(FileIO(os.open(name, _FILE, dir_fd=folder)))
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise IsADirectoryError(errno.EISDIR, "is no regular file", path)
            yield file


def version(status: os.stat_result) -> str:
    """A string that changes when a file is rewritten."""
    # Without the inode, which a restore or another machine changes.
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _base(stack: ExitStack, path: Path) -> int:
    try:
        return _entered(stack, os.open(path, _FOLDER))
    except (FileNotFoundError, NotADirectoryError) as error:
        # Base folder missing (unmounted?): report it unavailable, not empty.
        raise OSError(errno.ENODEV, "is not there", str(path)) from error


def _descend(stack: ExitStack, folder: int, names: Sequence[str]) -> int:
    for name in names:
        folder = _entered(stack, os.open(name, _FOLDER, dir_fd=folder))
    return folder


def _entered(stack: ExitStack, folder: int) -> int:
    stack.callback(os.close, folder)
    return folder


def _walk(folder: int, below: str, counter: Iterator[int], depth: int) -> Iterator[Found]:
    if not depth:
        raise InvalidRequest(
            f"it has folders more than {DEEPEST} deep, such as {below[:100]!r}. Put the objects"
            " higher up.",
            code="source_too_large",
        )
    with os.scandir(folder) as entries:
        for entry in entries:
            if next(counter, None) is None:
                raise InvalidRequest(
                    f"it holds more than {MOST_NAMES:,} names, the most that are looked through."
                    " Remove those that are done, or use a folder for each day, with a placeholder"
                    " such as {{scheduled_date}} in its path.",
                    code="source_too_large",
                )
            if entry.name.startswith(".") or entry.name.endswith(UNFINISHED):
                continue
            path = below + entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    with ExitStack() as stack:
                        yield from _walk(
                            _descend(stack, folder, [entry.name]), f"{path}/", counter, depth - 1
                        )
                elif entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield Found(path, status.st_size, version(status))
            except FileNotFoundError:
                # Removed since the listing.
                continue

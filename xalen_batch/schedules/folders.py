"""Folders that others put files into: what lies in them, and their bytes. Nothing leads out of a
folder's base.

Every folder below the base is opened by its name from the one above, and links are never followed:
whoever may write there can swap a name for a link at any time, between any two looks.
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

# Names that are looked at below one folder, whatever they are; enough for a night, few enough for
# the transaction that fires.
MOST_NAMES = 10_000
DEEPEST = 16
UNFINISHED = (".tmp", ".part")

# What opening says of a name that is not there, or of a link, a folder or a pipe.
NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO}

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: a pipe that nobody writes to would be waited for.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Found(NamedTuple):
    """A file by its path below the folder. `version` is another one when it was written again."""

    path: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder by its way down from a base, a path without links that only the operator can change."""

    base: Path
    below: tuple[str, ...]

    def files(self) -> list[Found]:
        """Its regular files, those of its subfolders too, sorted by path; without hidden and
        unfinished ones, and what links lead to.

        None are in a folder that is not there. InvalidRequest if there are too many names to look
        through; OSError if the base is away, or the folder is no folder or cannot be read.
        """
        with ExitStack() as stack:
            base = _base(stack, self.base)
            try:
                folder = _descend(stack, base, self.below)
            except FileNotFoundError:
                return []
            return sorted(_walk(folder, "", iter(range(MOST_NAMES)), DEEPEST))

    def has(self, path: str) -> bool:
        """Whether there is a file of this path below it."""
        try:
            with self.open(path):
                return True
        except OSError as error:
            if error.errno not in NOT_THERE:
                raise
            return False

    @contextmanager
    def open(self, path: str) -> Iterator[FileIO]:
        """A file of this path below it, to be read.

        OSError: NOT_THERE if there is no such file, but at most a link to one.
        """
        *folders, name = (*self.below, *path.split("/"))
        with ExitStack() as stack:
            folder = _descend(stack, _base(stack, self.base), folders)
            file = stack.enter_context(FileIO(os.open(name, _FILE, dir_fd=folder)))
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise IsADirectoryError(errno.EISDIR, "is no regular file", path)
            yield file


def version(status: os.stat_result) -> str:
    # Without the inode: it is another one on the next machine, or after a restore.
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _base(stack: ExitStack, path: Path) -> int:
    try:
        return _entered(stack, os.open(path, _FOLDER))
    except (FileNotFoundError, NotADirectoryError) as error:
        # As where a disk is not mounted: that says nothing of what is on it.
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
                # It has just been removed.
                continue

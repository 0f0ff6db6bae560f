"""The data folder of `xalen-batch up`: closed to other users, and locked by one `up` at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xalen_batch.errors import ConfigError

# The names that `up` makes in it.
OWN = frozenset(
    {"credentials.toml", "files", "logs", "postgres", "run", "run.toml", "up.lock", "valkey"}
)


def make(folder: Path) -> None:
    """Make the folder with mode 0700, or set that mode on an existing one."""
    try:
        for path in (folder, folder / "logs", folder / "run"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close(folder)
    except OSError as error:
        raise ConfigError(
            f"The data folder {folder} cannot be used: {error.strerror}. Choose another with"
            " --data-dir."
        ) from error


def _close(folder: Path) -> None:
    # A folder with other files keeps its mode, and `doctor` reports it: `--data-dir /srv` must not
    # close /srv.
    if not OWN.issuperset(found.name for found in folder.iterdir()):
        return
    for path in (folder, folder / "files"):
        # A folder of another user keeps its mode.
        with suppress(FileNotFoundError, PermissionError):
            path.chmod(0o700)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder; ConfigError with the pid of the other `up` that has it."""
    with (folder / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(
                f"`xalen-batch up` is running on {folder} already (process {lock.read().strip()}). "
                "Stop it first, or choose another folder with --data-dir."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield

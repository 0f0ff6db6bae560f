"""Work of a request that takes long, in a process of its own, so that it takes neither the
interpreter's lock nor a core from the requests of others. The thread that asks only waits.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from xalen_batch import storage
from xalen_batch.config import settings
from xalen_batch.errors import Unavailable
from xalen_batch.validation.pool import Readers

T = TypeVar("T")

# Below the API, the database and the workers, which answer and run the lines of others.
NICENESS = 15
# Seconds until the first process is there; a fork server takes half a second to start.
START = 10.0
# Seconds. The largest file takes a few.
PATIENCE = 60.0
# Work on so little takes less time than a process takes to start.
SMALL_BYTES = 256 * 1024

_here = threading.Lock()


def run(work: Callable[[], T], *, size: int) -> T:
    """What the work returns, which is never None, or raises; both it and its result can be pickled.
    `size`: the bytes that it is on.

    Small work is done in this thread; so is what no process can be had for or a process is lost
    with, by one thread at a time. Unavailable if it takes more than `PATIENCE` seconds.
    """
    if size <= SMALL_BYTES:
        return work()
    if settings().validation_processes and (result := _apart(work)) is not None:
        return result
    with _here:
        return work()


def _apart(work: Callable[[], T]) -> T | None:
    """None: no process did it."""
    with Readers(1, _Once(work), niceness=NICENESS, patience=START) as readers:
        readers.give(todo := deque([()]))
        if not readers.are_busy:
            return None
        found = readers.back(todo, PATIENCE)
    if found is None:
        raise Unavailable(
            f"Reading took more than {PATIENCE:g} s. Send the request again later, or with a"
            " smaller file."
        )
    return found.get(())


@dataclass(frozen=True, slots=True)
class _Once(Generic[T]):
    work: Callable[[], T]

    def __call__(self, _: tuple[()]) -> T | None:
        try:
            return self.work()
        except storage.UNAVAILABLE:
            # The process that asks meets it too, and raises it.
            return None

"""Runs long work of a request in a process of its own, so that other requests keep the GIL and
their core. The thread of the request only waits.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from xalen_batch import storage
from xalen_batch.config import settings
from xalen_batch.errors import Unavailable
from xalen_batch.validation.pool import ReaderPool

T = TypeVar("T")

# Added to the niceness of the API: below the API, the database and the workers.
NICENESS = 15
# Seconds until the first process has started; the fork server alone takes half a second.
START_TIMEOUT = 10.0
# Seconds until the work is done; that on the largest file takes a few.
WORK_TIMEOUT = 60.0
# Work on fewer bytes takes less time than a process takes to start.
SMALL_BYTES = 256 * 1024

_in_process = threading.Lock()


def run(work: Callable[[], T], *, size: int) -> T:
    """The result of `work()`, which is never None. Both it and its result are pickled.

    `size`: the bytes that it reads. Small work is done in this thread. So is work for which no
    process starts, or whose process is lost, but by one thread at a time. Raises Unavailable after
    WORK_TIMEOUT seconds, and any exception of the work.
    """
    if size <= SMALL_BYTES:
        return work()
    if settings().validation_processes:
        result = _apart(work)
        if result is not None:
            return result
    with _in_process:
        return work()


def _apart(work: Callable[[], T]) -> T | None:
    """The result of the work in a process of its own; None if it was not done there."""
    todo = deque([()])
    with ReaderPool(1, _Once(work), niceness=NICENESS, start_timeout=START_TIMEOUT) as readers:
        readers.give(todo)
        if not readers.are_busy:
            return None
        found = readers.results(todo, WORK_TIMEOUT)
    if found is None:
        raise Unavailable(
            f"Reading took more than {WORK_TIMEOUT:g} s. Send the request again later, or with a"
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
            # The process that asks then does the work itself, and raises the error.
            return None

"""Jobs that take turns: a bounded number of threads runs a kind of job, however many jobs wait."""

import threading
from collections.abc import Callable


class Turns:
    """Runs jobs of one kind on at most `threads` threads of this process; any thread.

    Further jobs wait in a queue, each id once, and block no thread of the pool. Waiting jobs are
    lost with the process; the sweep finds them again.
    """

    def __init__(self, run: Callable[[str], None], threads: int) -> None:
        self._run = run
        self._free = threads
        self._lock = threading.Lock()
        # A dict as an ordered set.
        self._waiting: dict[str, None] = {}

    def take(self, id: str) -> None:
        """Run this job and those that arrive meanwhile, or leave it to a thread that runs jobs."""
        with self._lock:
            self._waiting[id] = None
            if not self._free:
                return
            self._free -= 1
        try:
            next_id = self._next()
            while next_id is not None:
                self._run(next_id)
                next_id = self._next()
        except BaseException:
            self._leave()
            raise

    def _next(self) -> str | None:
        with self._lock:
            if self._waiting:
                id = next(iter(self._waiting))
                del self._waiting[id]
                return id
            # Under the same lock as the check: a job that arrives now finds a free thread.
            self._free += 1
            return None

    def _leave(self) -> None:
        with self._lock:
            self._free += 1

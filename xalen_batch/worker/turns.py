"""Jobs that take turns: a few threads of a process are at them, however many wait."""

import threading
from collections.abc import Callable


class Turns:
    """At most `threads` of this process run a kind of job at a time; what comes meanwhile waits for
    one of them, and once.

    Nobody waits in a thread of its own, which others may need. What waits is lost with the process:
    the sweep finds it again.
    """

    def __init__(self, run: Callable[[str], None], threads: int) -> None:
        self._run = run
        self._free = threads
        self._lock = threading.Lock()
        # In the order in which they came.
        self._waiting: dict[str, None] = {}

    def take(self, id: str) -> None:
        """Run this job and all that come meanwhile, or leave it to those who are at it."""
        with self._lock:
            self._waiting[id] = None
            if not self._free:
                return
            self._free -= 1
        try:
            while (next_id := self._next()) is not None:
                self._run(next_id)
        except BaseException:
            self._leave()
            raise

    def _next(self) -> str | None:
        with self._lock:
            if self._waiting:
                id = next(iter(self._waiting))
                del self._waiting[id]
                return id
            # In one step with the look: what comes from now on finds a thread that is free.
            self._free += 1
            return None

    def _leave(self) -> None:
        with self._lock:
            self._free += 1

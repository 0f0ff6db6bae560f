"""Folders that hang: a share whose server is gone answers no look into it, for ever, and no signal
ends the look.

So each look is made on a thread of its own, which is waited for only so long; one that hangs is
left behind, and until it is over nobody else looks there.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Seconds. Ten thousand names of a slow share are listed in less.
PATIENCE = 10.0

_hanging: dict[Path, threading.Thread] = {}


def look(into: Path, at: Callable[[], T]) -> T:
    """What `at` returns or raises.

    TimeoutError, which is storage being away: it hangs, or an earlier look into the same place
    does.
    """
    if (earlier := _hanging.get(into)) is not None and earlier.is_alive():
        raise TimeoutError(f"{into} hangs")
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(at())
        except BaseException as error:
            found.set_exception(error)

    thread = threading.Thread(target=run, name="look", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not found.done():
        _hanging[into] = thread
        raise TimeoutError(f"{into} hangs")
    _hanging.pop(into, None)
    return found.result()

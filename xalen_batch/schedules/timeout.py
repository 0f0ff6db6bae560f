"""A timeout for file system calls: on a share whose server is gone, a call hangs for good.

No signal ends such a call. So each call runs on a thread of its own, and its caller waits
FOLDER_TIMEOUT seconds for it. While a call hangs, later calls to the same share fail at once.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Seconds. Listing 10,000 names of a slow share takes less.
FOLDER_TIMEOUT = 10.0

_hanging: dict[Path, threading.Thread] = {}


def call(share: Path, work: Callable[[], T]) -> T:
    """The result of `work`, which reads the share; raises what `work` raises. Called on any thread.

    TimeoutError, one of storage.UNAVAILABLE, if this call hangs, or an earlier one to the share
    still does.
    """
    earlier = _hanging.get(share)
    if earlier is not None and earlier.is_alive():
        raise TimeoutError(f"{share} hangs")
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=run, name="share", daemon=True)
    thread.start()
    thread.join(FOLDER_TIMEOUT)
    if not result.done():
        _hanging[share] = thread
        raise TimeoutError(f"{share} hangs")
    _hanging.pop(share, None)
    return result.result()

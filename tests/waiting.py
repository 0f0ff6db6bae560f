"""Waiting for something that has to happen.

PATIENCE is no bound on speed: a test that passes never waits that long, however slow or busy the
machine is.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

# Seconds.
PATIENCE = 180.0
LONGEST_PAUSE = 0.1


class Running(Protocol):
    """A process: a `subprocess.Popen` or a `tests.forks.Fork`."""

    def poll(self) -> int | None: ...


def wait_until(
    happened: Callable[[], object],
    *,
    timeout: float = PATIENCE,
    process: Running | None = None,
    log: Path | None = None,
) -> None:
    """Poll until a condition is true: often at first, then every LONGEST_PAUSE.

    A look may be a request to a running system, whose processes do the work that is waited for.

    Raises AssertionError, with the end of the log, if the time is over or the process has ended.
    """
    deadline = time.monotonic() + timeout
    pause = 0.01
    while not happened():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            words = log.read_text("utf-8", "replace")[-3000:] if log else ""
            raise AssertionError(
                f"{'the process ended' if ended else f'not within {timeout:.0f} s'}\n{words}"
            )
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, 1.5 * pause)

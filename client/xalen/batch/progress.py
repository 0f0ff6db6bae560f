"""Progress of a batch as a plain line on stderr."""

import shutil
import sys
import time
from collections.abc import Callable

from openai.types import Batch

ENDED = ("completed", "failed", "expired", "cancelled")
# True: a line on stderr; None: only if stderr is a terminal; or a function that gets each state.
Progress = bool | Callable[[Batch], object] | None
LINE_EVERY = 10.0


def reporter(progress: Progress) -> Callable[[Batch], object]:
    if callable(progress):
        return progress
    is_terminal = sys.stderr.isatty()
    if progress or (progress is None and is_terminal):
        return _Line(is_terminal=is_terminal)
    return lambda _: None


class _Line:
    """One line that is overwritten on a terminal, else a line from time to time."""

    def __init__(self, *, is_terminal: bool) -> None:
        self._is_terminal = is_terminal
        self._status = ""
        self._said_at = 0.0

    def __call__(self, batch: Batch) -> None:
        has_ended = batch.status in ENDED
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            end = "\n" if has_ended else ""
            sys.stderr.write(f"\r\x1b[K{described(batch)[:width]}{end}")
        elif batch.status != self._status or time.monotonic() - self._said_at >= LINE_EVERY:
            self._status, self._said_at = batch.status, time.monotonic()
            sys.stderr.write(f"{described(batch)}\n")
        sys.stderr.flush()


def described(batch: Batch) -> str:
    """`batch_0192… in_progress 1,200/50,000 lines, 3 failed`, and what it waits for."""
    told = f"{batch.id} {batch.status}"
    if (counts := batch.request_counts) and counts.total:
        # Lines that were not run are counts of their own, beside those of OpenAI.
        unrun = sum(getattr(counts, name, None) or 0 for name in ("cancelled", "expired"))
        done = counts.completed + counts.failed + unrun
        told += f" {done:,}/{counts.total:,} lines, {counts.failed:,} failed"
    waiting = getattr(batch, "waiting", None)
    return f"{told}. Waiting: {waiting['message']}" if isinstance(waiting, dict) else told

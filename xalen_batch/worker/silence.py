"""Silence: since when a backend has failed every request that ended, and how the last one failed."""

import time
from collections.abc import Callable
from typing import NamedTuple

# Seconds; a failure that a retry mends at once is not told.
TOLD_AFTER = 2.0


class Told(NamedTuple):
    seconds: float
    # The last failure in words, without an address or a key.
    reason: str


class Silence:
    """Changed on the event loop only; `told` may be read from any thread.

    The circuit opens after several failures in a row of one batch, which takes minutes where a
    batch has few lines. This tells sooner, and decides nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # When it began, and the last failure.
        self._found: tuple[float, str] | None = None

    def failed(self, reason: str) -> None:
        """A request ended without an answer."""
        began = self._clock() if self._found is None else self._found[0]
        self._found = (began, reason)

    def over(self) -> None:
        """The backend did its work."""
        self._found = None

    @property
    def told(self) -> Told | None:
        """None while the backend answers, or has failed only for a moment."""
        found = self._found
        if found is None or (seconds := self._clock() - found[0]) < TOLD_AFTER:
            return None
        return Told(seconds, found[1])

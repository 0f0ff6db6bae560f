"""Silence: for how long a backend has failed every request, and how the last one failed."""

import time
from collections.abc import Callable
from typing import NamedTuple

# Seconds of silence before it is reported: a failure that one retry mends is not.
REPORTED_AFTER = 2.0


class SilenceReport(NamedTuple):
    seconds: float
    # The last failure in words, without an address or a key.
    reason: str


class Silence:
    """Detects an outage for reports; changed on the event loop thread only.

    `report` may be read from any thread. The circuit breaker opens later: it needs several failures
    in a row of one batch, which takes minutes if a batch has few lines. This decides nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # When the silence began, and the last failure.
        self._found: tuple[float, str] | None = None

    def failed(self, reason: str) -> None:
        """A request ended without an answer."""
        began = self._clock() if self._found is None else self._found[0]
        self._found = (began, reason)

    def over(self) -> None:
        """The backend answered or refused a request."""
        self._found = None

    @property
    def report(self) -> SilenceReport | None:
        """None if the backend answers, or has failed for less than REPORTED_AFTER seconds."""
        found = self._found
        if found is None:
            return None
        seconds = self._clock() - found[0]
        return None if seconds < REPORTED_AFTER else SilenceReport(seconds, found[1])

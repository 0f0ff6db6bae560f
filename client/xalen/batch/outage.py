"""How long the server may be away while a batch is waited for or downloaded."""

import random
import time

from openai import APIConnectionError, InternalServerError, RateLimitError

# Seconds. A restart, a failover and a change of the network take minutes.
PATIENCE = 900.0
# Seconds without a byte after which a connection counts as lost.
SILENCE = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
# The same request may succeed later.
PASSING = (APIConnectionError, InternalServerError, RateLimitError)


class Outage:
    """Counts the time without progress, and gives the pauses between attempts."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._pause = FIRST_PAUSE

    def over(self) -> None:
        """There was progress."""
        self._since, self._pause = None, FIRST_PAUSE

    def pause(self, error: Exception) -> float:
        """Seconds until the next attempt. Raises the error if the server was away too long."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since > PATIENCE:
            raise error
        pause = self._pause * random.uniform(0.5, 1)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return pause

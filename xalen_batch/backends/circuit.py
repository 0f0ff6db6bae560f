"""The circuit of one backend in one worker process: it is left alone while it is broken."""

import time

from xalen_batch import log
from xalen_batch.config import settings

logger = log.get(__name__)

# Retries may be a fifth of all requests, plus a start-up allowance; beyond that they feed an outage.
RETRY_SHARE = 0.2
RETRY_ALLOWANCE = 100.0


class Circuit:
    """Opens when a backend fails many times in a row, or when retries outgrow their budget.

    While it is open, lines go back unrun instead of burning their attempts. After the pause, work
    flows again; the first failures open it again at once.
    """

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._failures = 0
        self._budget = RETRY_ALLOWANCE
        self._open_until = 0.0

    @property
    def pause(self) -> float:
        """Seconds until the backend may be tried again; 0 when it may be now."""
        return max(0.0, self._open_until - time.monotonic())

    def sent(self) -> None:
        self._budget = min(RETRY_ALLOWANCE, self._budget + RETRY_SHARE)

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        self._budget -= 1
        if (self._failures >= settings().circuit_failures or self._budget < 0) and not self.pause:
            self._open_until = time.monotonic() + settings().circuit_pause
            # Half open afterwards: a single failure more is enough.
            self._failures = settings().circuit_failures - 1
            self._budget = max(self._budget, 0)
            logger.warning("backend.circuit_opened", backend=self._name, pause=settings().circuit_pause)

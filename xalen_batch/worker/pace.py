"""The pace of one backend in the log: failures as they begin, and how fast it answers.

Events of one backend in one worker process:

    backend.failing   the first failure of a kind (status and reason) at once; later ones as a
                      count, once per INTERVAL
    backend.pace      once per INTERVAL while lines run: counts of requests answered, failed, in
                      flight and waiting, and times of answers
    backend.slow      in place of `backend.pace`, at level warning, when the median answer or the
                      oldest request in flight first takes SLOW times the catalog's `latency_ms`

A reason names a status and an error code, never text of a request or an answer.
"""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from xalen_batch import log
from xalen_batch.backends.contract import Outcome, Retryable
from xalen_batch.worker.circuit_breaker import Source

logger = log.get(__name__)

# Seconds between two events of the same name.
INTERVAL = 30.0
SLOW = 10.0
# Kinds of failure that are counted separately in one interval.
MOST_KINDS = 20

Kind = tuple[int | None, str]
OTHERS: Kind = (None, "Other failures.")


@dataclass(slots=True)
class _Sample:
    """Requests since the last event; answers as their times in seconds."""

    answers: list[float] = field(default_factory=list)
    failed: int = 0
    failures: Counter[Kind] = field(default_factory=Counter)


class Pace:
    """Logs the pace of one backend; event loop thread only.

    `waiting` returns the number of lines in the lane that are not in flight. `expected`: seconds
    of a usual answer, None if the catalog has no latency.
    """

    def __init__(
        self, name: str, waiting: Callable[[], int], expected: float | None = None
    ) -> None:
        self._name = name
        self._waiting = waiting
        self._expected = expected
        self._sample = _Sample()
        # Kinds that were logged in this interval; a failure of a new kind is logged at once.
        self._logged: set[Kind] = set()
        self._in_flight: dict[int, float] = {}
        self._number = 0
        self._is_slow = False
        self._timer: asyncio.TimerHandle | None = None

    def started(self) -> int:
        """A request is being sent. Returns its number, for `ended`."""
        self._number += 1
        self._in_flight[self._number] = time.monotonic()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._report)
        return self._number

    def ended(self, number: int, source: Source, outcome: Outcome | None) -> float:
        """The request has ended. `outcome` None: it was cancelled. Returns its seconds."""
        seconds = time.monotonic() - self._in_flight.pop(number)
        if isinstance(outcome, Retryable):
            self._sample.failed += 1
            self._failed(outcome, source)
        elif outcome is not None:
            self._sample.answers.append(seconds)
        return seconds

    def close(self) -> None:
        """Log the failures that were only counted, and stop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._log_failures()

    def _failed(self, outcome: Retryable, source: Source) -> None:
        kind = (outcome.status, outcome.reason)
        if kind in self._logged or len(self._logged) >= MOST_KINDS:
            self._sample.failures[kind if kind in self._logged else OTHERS] += 1
            return
        self._logged.add(kind)
        logger.warning(
            "backend.failing",
            backend=self._name,
            status=outcome.status,
            reason=outcome.reason,
            count=1,
            account_id=source.account_id,
            batch_id=source.batch_id,
        )

    def _report(self) -> None:
        self._timer = None
        self._logged = set(self._sample.failures) - {OTHERS}
        self._log_failures()
        self._log_pace()
        self._sample = _Sample()
        if self._in_flight or self._waiting():
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._report)
        else:
            self._logged.clear()

    def _log_failures(self) -> None:
        for (status, reason), count in self._sample.failures.items():
            logger.warning(
                "backend.failing", backend=self._name, status=status, reason=reason, count=count
            )

    def _log_pace(self) -> None:
        now, answers = time.monotonic(), self._sample.answers
        median = statistics.median(answers) if answers else 0.0
        oldest = max((now - since for since in self._in_flight.values()), default=0.0)
        is_slow = self._expected is not None and max(median, oldest) > SLOW * self._expected
        has_slowed = is_slow and not self._is_slow
        self._is_slow = is_slow
        write = logger.warning if has_slowed else logger.info
        write(
            "backend.slow" if has_slowed else "backend.pace",
            backend=self._name,
            answered=len(answers),
            failed=self._sample.failed,
            in_flight=len(self._in_flight),
            waiting=self._waiting(),
            median_ms=round(1000 * median),
            slowest_ms=round(1000 * max(answers, default=0.0)),
            oldest_ms=round(1000 * oldest),
            expected_ms=None if self._expected is None else round(1000 * self._expected),
        )

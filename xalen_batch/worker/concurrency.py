"""Adaptive concurrency: how many requests one worker process keeps in flight at one backend.

A hill climb on goodput (good answers per second) raises the limit, as long as a larger limit brings
more goodput. Overload signals lower it at once, by a factor (multiplicative decrease), at most once
per congestion epoch. Latency is no input: a server that batches requests answers each one later
under load, and yet completes more of them per second.
"""

import time
from collections.abc import Callable
from enum import Enum

# The first limit: this share of the ceiling, but at least START_AT_LEAST, which any backend takes.
START_SHARE, START_AT_LEAST = 0.5, 16
# A trial keeps its larger limit if goodput grows by this share of the growth in the limit: a
# backend with free capacity has a share of 1, a full one of 0.
MIN_GAIN = 0.1
# Factor from one limit to the next: until the backend has shown a limit, and afterwards.
DOUBLE, STEP = 2.0, 1.25
# Factor that an overload signal applies to a limit that had worked.
DECREASE = 0.85
# Goodput that differs by this factor at an unchanged limit means another backend: learn anew.
SHIFT = 1.4
# The bisection below a limit that was too high ends within this share of it.
RESOLUTION = 0.06
# Seconds without trials after a failed one; the pause doubles with each further failure.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 4.0
# Answers in a round, as a multiple of the limit. A small step needs a more precise measurement.
ANSWERS_PER_SLOT = {DOUBLE: 1, STEP: 3}
# A shorter round is extended: it measures chance.
LEAST_ANSWERS = 10
LEAST_SECONDS = 0.05
# A round counts only if this share of its requests started with the limit reached.
FULL_SHARE = 0.8


class Signal(Enum):
    """What the end of a request tells about the load of the backend."""

    GOOD = "good"
    # 429, 503 or a timeout.
    BUSY = "busy"
    # A failure that has other causes than load, or a request that was cut off.
    BROKEN = "broken"


# States of the climb, as `_base` and `limit` show them:
#
#     measuring   `limit` is the base, or there is no base: a round measures the goodput at it.
#     trial       `limit` is above the base: a round decides whether the larger limit is kept.
#
# Each change of the limit (`_move`) begins with a settling round, which nobody judges: its answers
# belong to requests that were sent under the old limit. Rounds that seldom reach the limit are not
# judged either.
#
#     from        event                                          to
#     measuring   full round, a larger limit is due (`_try`)     trial: ×2, ×1.25, or half way
#                                                                to `_too_high`
#     measuring   full round, no larger limit is due             measuring
#     measuring   BUSY (`_cut`)                                  measuring at ×0.85, trials pause
#     trial       full round, enough goodput gained (`_judge`)   measuring, the limit is the base
#     trial       full round, too little gained (`_judge`)       measuring at the base, trials pause
#     trial       BUSY (`_cut`)                                  measuring at the base, trials pause
#     any         `restart`, or another ceiling                  measuring, no base
#
# After BUSY the limit that was too high is known (`_too_high`). Trials then bisect the gap below
# it, also during the pause. Above it they go on only after the pause.
class Concurrency:
    """The limit on requests in flight at one backend, of one process; event loop thread only.

    `limit` and `goodput` may be read from any thread. `ceiling` is the most that the operator
    allows this process, and may change at any time.
    """

    def __init__(self, ceiling: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ceiling = ceiling
        self.limit = self._start
        self.in_flight = 0
        # Good answers per second in the last round.
        self.goodput = 0.0
        # Number of the congestion epoch. A decrease begins the next one, so that the overload
        # signals of requests sent before it count once.
        self._epoch = 0
        # The limit that trials are compared with, and its goodput; None before its first round.
        self._base: tuple[int, float] | None = None
        # The limit that last met an overload signal; None if none did since trials went beyond it.
        self._too_high: int | None = None
        self._factor = DOUBLE
        self._pause = FIRST_PAUSE
        self._paused_until = 0.0
        self._idle_since = self._clock()
        self._is_settling = False
        self._begin()

    @property
    def ceiling(self) -> int:
        return self._ceiling

    @ceiling.setter
    def ceiling(self, ceiling: int) -> None:
        if ceiling == self._ceiling:
            return
        was_there = self.limit >= self._ceiling
        self._ceiling = ceiling
        self._base = self._too_high = None
        self._move(ceiling if was_there else min(self.limit, ceiling))

    @property
    def _start(self) -> int:
        return min(self._ceiling, max(START_AT_LEAST, int(self._ceiling * START_SHARE)))

    def restart(self) -> None:
        """Forget what overload signals taught: they had other causes than load."""
        self._epoch += 1
        self._base = None
        self._learn_anew()
        self._move(max(self.limit, self._start))

    def started(self) -> int:
        """Count a request that is about to be sent. Returns its epoch, which `ended` takes."""
        if not self.in_flight and self._clock() - self._idle_since > LEAST_SECONDS:
            # An idle time would lower the measured goodput.
            self._begin()
        self.in_flight += 1
        is_full = self.in_flight >= self.limit
        if is_full and not self._full:
            # So would the ramp-up to the limit.
            self._begin()
        self._started += 1
        self._full += is_full
        return self._epoch

    def ended(self, epoch: int, signal: Signal) -> None:
        """Count a request that has ended, with the epoch that `started` returned."""
        self.in_flight -= 1
        if not self.in_flight:
            self._idle_since = self._clock()
        if signal is Signal.GOOD:
            self._good += 1
            if self._good >= self._enough:
                self._end_round()
        elif signal is Signal.BUSY and epoch == self._epoch:
            self._cut()

    def _cut(self) -> None:
        self._epoch += 1
        self._too_high, self._factor = self.limit, STEP
        if self._base is not None and self._base[0] < self.limit:
            self._move(self._base[0])
        else:
            self._base = None
            self._move(max(1, int(min(self.limit, self.in_flight + 1) * DECREASE)))
        self._wait()

    def _end_round(self) -> None:
        seconds = self._clock() - self._began
        if seconds < LEAST_SECONDS:
            self._enough = self._good * 2
            return
        self.goodput = self._good / seconds
        was_full = self._full >= FULL_SHARE * self._started
        if self._is_settling:
            self._is_settling = False
        elif was_full:
            self._judge()
        self._begin()

    def _judge(self) -> None:
        """After a full round: keep the limit or return to the base, then begin the next trial."""
        if self._base is None:
            self._base = self.limit, self.goodput
        elif self._base[0] == self.limit:
            if not 1 / SHIFT < self.goodput / self._base[1] < SHIFT:
                self._learn_anew()
            self._base = self.limit, self.goodput
        elif self.goodput >= self._base[1] * (1 + MIN_GAIN * (self.limit / self._base[0] - 1)):
            self._base = self.limit, self.goodput
            self._pause = FIRST_PAUSE
            if self._too_high is None:
                self._factor = DOUBLE
        else:
            self._too_high, self._factor = None, STEP
            self._move(self._base[0])
            self._wait()
        self._try()

    def _learn_anew(self) -> None:
        self._too_high = None
        self._factor, self._pause, self._paused_until = DOUBLE, FIRST_PAUSE, 0.0

    def _try(self) -> None:
        """Move to a larger limit if one is due."""
        larger = min(self._ceiling, max(self.limit + 1, int(self.limit * self._factor)))
        too_high = self._too_high
        if too_high is not None and too_high - self.limit > max(1, RESOLUTION * too_high):
            self._move(min(larger, (self.limit + too_high) // 2))
        elif larger > self.limit and self._clock() >= self._paused_until:
            self._too_high = None
            self._move(larger)

    def _wait(self) -> None:
        """Pause the trials. Failures during a pause do not extend it."""
        if self._clock() >= self._paused_until:
            self._paused_until = self._clock() + self._pause
            self._pause = min(LONGEST_PAUSE, self._pause * 2)

    def _move(self, limit: int) -> None:
        self.limit = limit
        self._is_settling = True
        self._begin()

    def _begin(self) -> None:
        """Begin a round."""
        self._began = self._clock()
        self._good = self._started = self._full = 0
        self._enough = max(LEAST_ANSWERS, ANSWERS_PER_SLOT[self._factor] * self.limit)

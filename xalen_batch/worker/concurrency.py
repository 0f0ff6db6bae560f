"""How many requests one backend gets at a time: as many as it answers faster for, at most what the
operator allows.

The measure is goodput, good answers a second. Latency is none: a model server that batches answers
each request later the more it has, and all of them sooner.
"""

import time
from collections.abc import Callable
from enum import Enum

# Where a backend starts, as a share of what it may get: the operator's word is trusted half. So few
# are no trouble to any.
START, FEW = 0.5, 16
# A larger limit has to bring this share of what it would bring to a backend that is not full.
GAIN = 0.1
# How much is tried at a time: at first, and once the backend has shown a limit.
LEAP, STEP = 2.0, 1.25
# What is left of a limit that had worked, after the backend has said that it is busy.
CUT = 0.85
# A backend that gives so much more or less than before, at the same limit, is another one: begin
# anew.
CHANGED = 1.4
# Trials below what was too much end this close to it.
CLOSE = 0.06
# Seconds until more is tried again than the backend could use; doubles each time that it still
# cannot.
FIRST_HOLD, LONGEST_HOLD = 0.5, 4.0
# A round ends when each request that fits has been answered about so often: a small step needs a
# finer measure.
ROUND = {LEAP: 1, STEP: 3}
# A few answers, or a moment, measure nothing.
LEAST_ANSWERS = 10
LEAST_SECONDS = 0.05
# Rounds in which the limit was reached less often say nothing about it.
FULL = 0.8


class Verdict(Enum):
    """What became of a request, as far as it tells how busy the backend is."""

    GOOD = "good"
    BUSY = "busy"
    BROKEN = "broken"


class Concurrency:
    """The limit of one backend in one process. `ceiling` may be moved at any time.

    It goes up by trials: after a round at a limit, one at a larger one; if that brought nothing,
    back again, for a while. It goes down at once when the backend says that it is busy (429, 503, a
    timeout), once for all requests that were under way by then; where that was a trial, to where it
    came from. Trials halve the way to what was too much.
    """

    def __init__(self, ceiling: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ceiling = ceiling
        self.limit = self._start
        self.in_flight = 0
        # Good answers a second, in the last round.
        self.goodput = 0.0
        self._cuts = 0
        # The limit that trials are measured against, and what it brought; None: no round at it has
        # ended.
        self._base: tuple[int, float] | None = None
        # The least limit that was too much; None while nothing was.
        self._wall: int | None = None
        self._factor = LEAP
        self._hold = FIRST_HOLD
        self._held_until = 0.0
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
        self._base = self._wall = None
        self._move(ceiling if was_there else min(self.limit, ceiling))

    @property
    def _start(self) -> int:
        return min(self._ceiling, max(FEW, int(self._ceiling * START)))

    def restart(self) -> None:
        """Forget what refusals taught: they were not about load."""
        self._cuts += 1
        self._base = self._wall = None
        self._factor, self._hold, self._held_until = LEAP, FIRST_HOLD, 0.0
        self._move(max(self.limit, self._start))

    def started(self) -> int:
        """A request goes out. Returns what `ended` has to be given for it."""
        if not self.in_flight and self._clock() - self._idle_since > LEAST_SECONDS:
            # Rest is no measure.
            self._begin()
        self.in_flight += 1
        is_full = self.in_flight >= self.limit
        if is_full and not self._full:
            # The way there is no measure either.
            self._begin()
        self._started += 1
        self._full += is_full
        return self._cuts

    def ended(self, token: int, verdict: Verdict) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle_since = self._clock()
        if verdict is Verdict.GOOD:
            self._good += 1
            if self._good >= self._enough:
                self._end_round()
        elif verdict is Verdict.BUSY and token == self._cuts:
            self._cut()

    def _cut(self) -> None:
        self._cuts += 1
        self._wall, self._factor = self.limit, STEP
        if self._base is not None and self._base[0] < self.limit:
            self._move(self._base[0])
        else:
            self._base = None
            self._move(max(1, int(min(self.limit, self.in_flight + 1) * CUT)))
        self._wait()

    def _end_round(self) -> None:
        seconds = self._clock() - self._began
        if seconds < LEAST_SECONDS:
            self._enough = self._good * 2
            return
        self.goodput = self._good / seconds
        was_full = self._full >= FULL * self._started
        if self._is_settling:
            # Its answers belong to requests from before.
            self._is_settling = False
        elif was_full:
            self._judge()
        self._begin()

    def _judge(self) -> None:
        """A full round at one limit has ended: keep the limit or go back, and go on to the next
        trial if there is one.
        """
        if self._base is None or self._base[0] == self.limit:
            if self._base is not None and not 1 / CHANGED < self.goodput / self._base[1] < CHANGED:
                self._wall, self._factor, self._hold, self._held_until = None, LEAP, FIRST_HOLD, 0.0
            self._base = self.limit, self.goodput
        elif self.goodput >= self._base[1] * (1 + GAIN * (self.limit / self._base[0] - 1)):
            self._base, self._hold = (self.limit, self.goodput), FIRST_HOLD
            if self._wall is None:
                self._factor = LEAP
        else:
            self._wall, self._factor = None, STEP
            self._move(self._base[0])
            self._wait()
        self._try()

    def _try(self) -> None:
        larger = min(self._ceiling, max(self.limit + 1, int(self.limit * self._factor)))
        if self._wall is not None and self._wall - self.limit > max(1, CLOSE * self._wall):
            self._move(min(larger, (self.limit + self._wall) // 2))
        elif larger > self.limit and self._clock() >= self._held_until:
            self._wall = None
            self._move(larger)

    def _wait(self) -> None:
        if self._clock() >= self._held_until:
            self._held_until = self._clock() + self._hold
            self._hold = min(LONGEST_HOLD, self._hold * 2)

    def _move(self, limit: int) -> None:
        self.limit = limit
        self._is_settling = True
        self._begin()

    def _begin(self) -> None:
        self._began = self._clock()
        self._good = self._started = self._full = 0
        self._enough = max(LEAST_ANSWERS, ROUND[self._factor] * self.limit)

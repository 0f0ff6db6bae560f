"""Adaptive concurrency: how many requests one worker process keeps in flight at one backend.

A hill climb on goodput (good answers per second) raises the limit, as long as a larger limit brings
more goodput. A refusal lowers it by one. The requests that remain in flight are those that the
backend took, so a burst of refusals ends exactly at its capacity. From there probes raise the limit
by one and, as long as none is refused, by steps that double, as CUBIC grows slowly near its last
loss and faster away from it. A timeout lowers the limit by a factor
(multiplicative decrease), at most once per congestion epoch. Latency is no input: a server that
batches requests answers each one later under load, and yet completes more of them per second.
"""

import time
from collections.abc import Callable
from enum import Enum

# The first limit: this share of the ceiling, but at least FEW, which any backend takes. Below FEW,
# goodput is not judged: it would measure chance.
START_SHARE, FEW = 0.5, 16
# A trial keeps its larger limit if goodput grows by this share of the growth in the limit: a
# backend with free capacity has a share of 1, a full one of 0.
MIN_GAIN = 0.1
# Factor from one limit to the next: until goodput has shown a limit, and afterwards.
DOUBLE, STEP = 2.0, 1.25
# Factor that a timeout applies to a limit that had worked.
DECREASE = 0.85
# Goodput that differs by this factor at an unchanged limit means another backend: learn anew.
SHIFT = 1.4
# Least answers in a round while a refusal is known. A full backend refuses one request per probe,
# so this bounds the refusals: about 1 / PROBE_ANSWERS of the answers.
PROBE_ANSWERS = 50
# Seconds without trials after one that failed on goodput; each further failure doubles the pause.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 4.0
# Answers in a round, as a multiple of the limit. A small step needs a more precise measurement.
ROUND_LENGTH = {DOUBLE: 1, STEP: 3}
# A shorter measurement is extended: it measures chance.
LEAST_SECONDS = 0.05
# A round counts only if this share of its requests started with the limit reached.
FULL_SHARE = 0.8


def share_of(ceiling: int, workers: int) -> int:
    """The share of a ceiling that each of `workers` live worker processes has; at least one."""
    return max(1, ceiling // workers)


class Signal(Enum):
    """What the end of a request tells about the load of the backend."""

    GOOD = "good"
    # 429 or 503.
    REFUSED = "refused"
    TIMEOUT = "timeout"
    # A failure that has other causes than load, or a request that was cut off.
    BROKEN = "broken"


# States of the climb, as `_base`, `_probe` and `limit` show them:
#
#     measuring   `limit` is the base, or there is no base: a round measures the goodput at it.
#     probing     `limit` is above the base, by less than DOUBLE: only refusals judge it.
#     trial       `limit` is above the base: a round decides whether the larger limit is kept.
#
# `_probe` is the next step of a probe; 0 means that no refusal is known. Each increase begins with
# a settling round, which counts answers to requests sent under the new limit. Rounds that seldom
# reach the limit lead nowhere.
#
#     from        event                                        to
#     measuring   full round, no refusal is known (`_try`)     trial: ×2 or ×1.25
#     measuring   full round, a refusal is known (`_try`)      probing: +1
#     probing     full round (`_try`)                          probing: +2, +4, …; trial at ×2
#     trial       full round, enough goodput (`_judge`)        measuring, the limit is the base
#     trial       full round, too little gained (`_judge`)     measuring at the base, trials pause
#     any         REFUSED (`_refused`)                         limit - 1, without settling
#     any         REFUSED, none left in flight (`_refused`)    measuring at 1, no refusal is known
#     measuring   TIMEOUT (`_timed_out`)                       measuring at ×0.85
#     other       TIMEOUT (`_timed_out`)                       measuring at the base
#     any         `restart`                                    measuring, no base
#     any         a ceiling below a limit that was learned     cut: the limit is the ceiling
#     cut         a ceiling above it                           as before, at the limit of before
#     cut         REFUSED, TIMEOUT, `restart`                  as from measuring
#
# Live calls move the ceiling several times a second. A ceiling above the limit changes nothing, and
# one below it leaves alone what was learned (`_cut`), or the climb would begin anew each time. A
# limit that had reached the old ceiling, or of which nothing is known yet, follows the ceiling.
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
        # Good answers per second in the last measurement, in all and per request of the limit.
        self._goodput = self._goodput_per_request = 0.0
        # Number of moves of the limit. A request has the number at which it was sent.
        self._moves = 0
        # The congestion epoch: requests sent before this move cause no multiplicative decrease, so
        # that the timeouts of one overload count once.
        self._epoch = 0
        # The limit that trials are compared with, and its goodput; None before its first round.
        self._base: tuple[int, float] | None = None
        self._probe = 0
        # The limit before the ceiling fell below it; None: the ceiling leaves the limit alone.
        self._cut: int | None = None
        self._factor = DOUBLE
        self._pause = FIRST_PAUSE
        self._paused_until = 0.0
        self._idle_since = self._clock()
        self._is_settling = False
        self._begin()

    @property
    def goodput(self) -> float:
        """Good answers per second that the limit allows."""
        return self._goodput_per_request * self.limit

    @property
    def ceiling(self) -> int:
        return self._ceiling

    @ceiling.setter
    def ceiling(self, ceiling: int) -> None:
        if ceiling == self._ceiling:
            return
        follows = self.limit >= self._ceiling and self._cut is None
        wanted = ceiling if follows else self._cut or self.limit
        self._ceiling = ceiling
        limit = min(wanted, ceiling)
        if limit != self.limit:
            self._move(limit)
        is_learned = self._base is not None or self._probe > 0
        self._cut = wanted if wanted > ceiling and is_learned else None
        if self._cut is None and self._base is not None and self._base[0] > limit:
            self._base = None

    @property
    def _start(self) -> int:
        return min(self._ceiling, max(FEW, int(self._ceiling * START_SHARE)))

    def restart(self) -> None:
        """Forget what overload signals taught: they had other causes than load."""
        self._learn_anew()
        self._base = None
        self._move(max(self.limit, self._start))
        self._epoch = self._moves

    def started(self) -> int:
        """Count a request that is about to be sent. Returns a number that `ended` takes."""
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
        return self._moves

    def ended(self, move: int, signal: Signal) -> None:
        """Count a request that has ended, with the number that `started` returned."""
        self.in_flight -= 1
        if not self.in_flight:
            self._idle_since = self._clock()
        if signal is Signal.GOOD:
            if self._is_settling and move < self._moves:
                return
            self._good += 1
            if self._good >= self._enough:
                self._end_round()
        elif signal is Signal.REFUSED:
            self._refused()
        elif signal is Signal.TIMEOUT and move >= self._epoch:
            self._timed_out()

    def _refused(self) -> None:
        if not self.in_flight:
            # The backend took no request at all, which shows no capacity.
            self._learn_anew()
            self._base = None
            self._move(1)
            return
        self.limit = max(1, min(self.limit - 1, self.in_flight))
        self._cut = None
        self._probe, self._factor = 1, DOUBLE
        if self._base is not None and self._base[0] > self.limit:
            self._base = None
        if self._is_settling:
            # What remains in flight was taken: there is nothing to wait for.
            self._is_settling = False
            self._begin()
        # Later refusals do not restart the round. Otherwise a backend that refuses a share of
        # requests at any limit would never be probed again.
        self._enough = self._answers_in_round()

    def _timed_out(self) -> None:
        if self._base is not None and self._base[0] < self.limit:
            limit = self._base[0]
        else:
            self._base = None
            limit = max(1, int(min(self.limit, self.in_flight + 1) * DECREASE))
        self._probe, self._factor = 1, DOUBLE
        self._move(limit)
        self._epoch = self._moves

    def _end_round(self) -> None:
        was_full = self._full >= FULL_SHARE * self._started
        if self._is_settling:
            self._is_settling = False
            if was_full and self._is_probing:
                self._try()
            self._begin()
            return
        seconds = self._clock() - self._began
        if seconds < LEAST_SECONDS:
            self._enough = self._good * 2
            return
        self._goodput = self._good / seconds
        self._goodput_per_request = self._goodput / self.limit
        if was_full:
            self._judge()
        self._begin()

    @property
    def _is_probing(self) -> bool:
        base = self._base
        return self._probe > 0 and base is not None and base[0] < self.limit < DOUBLE * base[0]

    def _judge(self) -> None:
        """After a full round: keep the limit or return to the base, then begin the next trial."""
        base = self._base
        if self._cut is not None:
            return
        if base is None or self.limit < FEW:
            self._base = self.limit, self._goodput
        elif self._is_probing:
            pass
        elif base[0] == self.limit:
            # While a refusal is known, probes notice another backend.
            if not self._probe and not 1 / SHIFT < self._goodput / base[1] < SHIFT:
                self._learn_anew()
            self._base = self.limit, self._goodput
        elif self._goodput >= base[1] * (1 + MIN_GAIN * (self.limit / base[0] - 1)):
            self._base = self.limit, self._goodput
            self._pause, self._factor = FIRST_PAUSE, DOUBLE
        else:
            self._probe, self._factor = 0, STEP
            self._move(base[0])
            self._wait()
        self._try()

    def _learn_anew(self) -> None:
        self._probe = 0
        self._factor, self._pause, self._paused_until = DOUBLE, FIRST_PAUSE, 0.0

    def _try(self) -> None:
        """Move to a larger limit if one is due."""
        larger = min(self._ceiling, max(self.limit + 1, int(self.limit * self._factor)))
        if self._probe:
            if self._base is not None:
                larger = min(larger, int(self._base[0] * DOUBLE))
            larger = min(larger, self.limit + self._probe)
        elif self._clock() < self._paused_until:
            return
        if larger > self.limit:
            self._probe *= 2
            self._move(larger)

    def _wait(self) -> None:
        """Pause the trials. Failures during a pause do not extend it."""
        if self._clock() >= self._paused_until:
            self._paused_until = self._clock() + self._pause
            self._pause = min(LONGEST_PAUSE, self._pause * 2)

    def _move(self, limit: int) -> None:
        self.limit, self._cut = limit, None
        self._moves += 1
        self._is_settling = True
        self._begin()

    def _begin(self) -> None:
        """Begin a round."""
        self._began = self._clock()
        self._good = self._started = self._full = 0
        self._enough = self._answers_in_round()

    def _answers_in_round(self) -> int:
        if self._probe:
            return max(PROBE_ANSWERS, self.limit)
        return ROUND_LENGTH[self._factor] * self.limit

"""One backend as one worker process uses it: a fair queue of lines, and as many pumps as it may
have requests in flight.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from xalen_batch import log
from xalen_batch.backends.buffer import Buffer
from xalen_batch.backends.contract import (
    NOT_RUN,
    Answered,
    Backend,
    Ended,
    Exhausted,
    NotRun,
    Outcome,
    Refused,
    Retryable,
)
from xalen_batch.config import settings
from xalen_batch.ratelimit.backend import Rates, estimate
from xalen_batch.worker.circuit_breaker import Circuit, Source
from xalen_batch.worker.concurrency import Concurrency, Verdict
from xalen_batch.worker.fair_queue import FairQueue
from xalen_batch.worker.pace import Pace
from xalen_batch.worker.silence import Silence
from xalen_batch.worker.work import Entry, Line, Work

logger = log.get(__name__)

# Lines for this many seconds wait behind those in flight, so that the pipe stays full while more
# are claimed.
BACKLOG = 0.5


class Lane:
    """Made and used on the event loop; `unfinished`, `limit`, `room`, `rooms`, `silence` and the
    circuit's state may be read from any thread.

    `ceiling`: most requests in flight at the backend, over all worker processes; each takes an
    equal share. `rates`: how fast it may be asked, None where nothing limits that. `buffer`: the
    bytes of its answers. `on_room`: called on the loop when there is room again. `latency`: seconds
    of a usual answer; one that takes many times as long is logged.
    """

    def __init__(
        self,
        backend: Backend,
        ceiling: int,
        name: str = "",
        *,
        workers: int = 1,
        rates: Rates | None = None,
        buffer: Buffer | None = None,
        latency: float | None = None,
        on_room: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backend = backend
        self.buffer = buffer or Buffer()
        self._rates = rates
        self._clock = clock
        self._on_room = on_room
        self.circuit = Circuit(name, clock)
        self.silence = Silence(clock)
        self.unfinished = 0
        self._of_account: Counter[str] = Counter()
        # Accounts that had no room when they were last looked at.
        self._full: set[str] = set()
        self._ceiling = ceiling
        self._concurrency = Concurrency(_share(ceiling, workers), clock)
        self._waiting: FairQueue[Entry] = FairQueue()
        self._pace = Pace(name, lambda: self.unfinished - self._concurrency.in_flight, latency)
        self._pausing: dict[Entry, asyncio.TimerHandle] = {}
        # By account, a line that was refused although it was the only one in flight: until its
        # pause is over, the account sends nothing.
        self._refused: dict[str, Entry] = {}
        # Accounts for which only the backend says that it is busy.
        self._doubted: set[str] = set()
        self._refill: asyncio.TimerHandle | None = None
        # What each pump sends now.
        self._pumps: dict[asyncio.Task[None], Entry | None] = {}

    @property
    def limit(self) -> int:
        """Most requests in flight now."""
        return self._concurrency.limit

    @property
    def room(self) -> int:
        """How many more lines of an account that is here should be claimed; 0: a claim is not worth
        its cost. Others come with a hint.
        """
        rooms = self.rooms()
        return max(
            (rooms[account] for account in rooms if account is not None), default=rooms[None]
        )

    def rooms(self) -> Mapping[str | None, int]:
        """How many more lines should be claimed of each account that has lines here, and (None) of
        one that has none.

        Enough wait behind those in flight that the pipe stays full while a task is claimed, and not
        more, so that later claims can still be fair. A claim is worth its cost when half of them
        are gone.
        """
        if self.buffer.is_full:
            return dict.fromkeys((None, *self._of_account), 0)
        opening = self.circuit.opening
        if opening is not None:
            return {None: opening.lines}
        return {account: self._room_of(account) for account in (None, *self._of_account)}

    def share(self, workers: int) -> None:
        """So many worker processes use the backend now, this one included."""
        self._concurrency.ceiling = _share(self._ceiling, workers)
        self._fill()

    def add(self, work: Work, lines: Sequence[Line]) -> None:
        """Send these lines behind all of their account that are here."""
        source = work.source
        self.unfinished += len(lines)
        self._of_account[source.account_id] += len(lines)
        entries = [Entry(work, line) for line in lines]
        if self.circuit.holds(source):
            probes = self.circuit.probe(source, len(lines))
            for entry in entries[:probes]:
                entry.is_probe = True
            for entry in entries[probes:]:
                self._over(entry, NOT_RUN)
            entries = entries[:probes]
        self._waiting.add(source, entries)
        if not self._room_of(source.account_id):
            self._full.add(source.account_id)
        self._fill()

    def stop(self, work: Work) -> None:
        """Give back at once those lines of a stopped work that are not in flight."""
        self._give_back(lambda entry: entry.work is work)
        # Those that wait for their rate.
        self._cancel(work, is_sent=False)
        self._fill()

    def cut(self, work: Work) -> None:
        """Give up the requests of a stopped work that are in flight."""
        self._cancel(work, is_sent=True)

    async def close(self) -> None:
        """Give back what it may still send. Nothing may be on its way any more."""
        self._pace.close()
        if self._rates is not None:
            await self._rates.close()

    def _room_of(self, account: str | None) -> int:
        if self._rates is not None and self._rates.wait > BACKLOG:
            return 0
        lines = sum(
            lines
            for other, lines in list(self._of_account.items())
            if other == account or self._waiting.is_answered(other)
        )
        backlog = max(self.limit, int(self._concurrency.goodput * BACKLOG))
        missing = self.limit + backlog - lines
        return missing if 2 * missing > backlog else 0

    def _cancel(self, work: Work, *, is_sent: bool) -> None:
        for pump, entry in list(self._pumps.items()):
            if entry is not None and entry.work is work and entry.is_sent is is_sent:
                pump.cancel()

    def _give_back(self, is_wanted: Callable[[Entry], bool]) -> None:
        pausing = [entry for entry in self._pausing if is_wanted(entry)]
        for entry in pausing:
            self._pausing.pop(entry).cancel()
            self._goes_on(entry)
        for entry in pausing + self._waiting.take(is_wanted):
            self._over(entry, NOT_RUN)

    def _next(self) -> Entry | None:
        if self._rates is not None and self._rates.wait > BACKLOG:
            # Only a few wait for the rate, first come, first served; the others wait here, where
            # accounts take turns.
            if self._waiting and self._refill is None:
                self._refill = asyncio.get_running_loop().call_later(
                    self._rates.wait - BACKLOG, self._again_by_rate
                )
            return None
        return self._waiting.next(self.limit, self._refused)

    def _again_by_rate(self) -> None:
        self._refill = None
        self._fill()

    def _fill(self) -> None:
        while (entry := self._next()) is not None:
            pump = asyncio.create_task(self._pump(entry))
            self._pumps[pump] = None
            pump.add_done_callback(self._pump_ended)

    def _pump_ended(self, pump: asyncio.Task[None]) -> None:
        del self._pumps[pump]
        self._fill()

    async def _pump(self, entry: Entry | None) -> None:
        """Send line after line, until none may be sent or the limit has fallen."""
        me = asyncio.current_task()
        assert me is not None
        while entry is not None:
            self._pumps[me] = entry
            await self._run(entry)
            self._pumps[me] = None
            entry = self._next()
            if len(self._pumps) < self.limit:
                self._fill()

    async def _run(self, entry: Entry) -> None:
        outcome = None
        try:
            outcome = await self._send(entry)
        finally:
            self._waiting.ended(entry, is_answered=_is_answered(outcome))
            if outcome is None:
                self._over(entry, NOT_RUN)
        if isinstance(outcome, Retryable):
            self._failed(entry, outcome)
        elif outcome is not None:
            self._over(entry, outcome)

    async def _send(self, entry: Entry) -> Outcome | None:
        """One request. None: it was not sent, as its work was stopped or its source is held."""
        request, source = entry.line.request, entry.work.source
        if entry.work.is_stopped or self._is_held(entry):
            return None
        expected = 0
        if self._rates is not None:
            expected = estimate(request.body, request.endpoint)
            await self._rates.admit(expected)
            if self._is_held(entry):
                # The circuit opened while this one waited.
                self._rates.settle(expected, None)
                return None
        entry.attempts += 1
        entry.is_sent = True
        number = self.circuit.sent(source)
        if not entry.first:
            entry.first, entry.first_at = number, self._clock()
        token, timed, outcome = self._concurrency.started(), self._pace.started(), None
        try:
            outcome = await self.backend.send(request)
        except Exception as error:
            # A bug of ours: it costs this line its attempts, and its neighbours go on.
            logger.error("line.crashed", request_id=request.request_id, **log.cause(error))
            outcome = Retryable(f"an internal error ({type(error).__name__})")
        finally:
            self._concurrency.ended(token, self._verdict(source, outcome))
            self._pace.ended(timed, source, outcome)
            if self._rates is not None:
                self._rates.settle(expected, _used(outcome))
        if not isinstance(outcome, Retryable):
            self.silence.over()
            self._succeeded(source, number, outcome)
        return outcome

    def _succeeded(self, source: Source, number: int, outcome: Outcome) -> None:
        self._doubted.discard(source.account_id)
        is_witness = not self.circuit.holds(source)
        if self.circuit.succeeded(source, number, is_answer=isinstance(outcome, Answered)):
            if is_witness:
                # Those that were refused are to blame, and not the load.
                self._concurrency.restart()
            self._on_room()

    def _failed(self, entry: Entry, outcome: Retryable) -> None:
        source = entry.work.source
        self.silence.failed(outcome.reason)
        # A backend that is busy gets fewer requests; one that is too busy for one at a time is as
        # good as broken.
        is_refused = outcome.is_overload and self.limit == 1 and not self.circuit.is_doubted(source)
        is_broken = is_refused or not outcome.is_overload
        self.circuit.failed(
            source,
            outcome.reason,
            outcome.status,
            is_broken=is_broken,
            may_be_own=outcome.may_be_own,
        )
        if self.circuit.holds(source):
            self._give_back(lambda other: other.work.source == source and not other.is_probe)
        is_own = outcome.is_failed_attempt or (
            outcome.refusal is not None and self.circuit.answered_since(entry.first)
        )
        if outcome.may_be_own and not is_own:
            # Else the last lines of a batch would wait for answers that nobody asks for any more.
            is_own = (
                self.circuit.is_vouched
                or self._clock() - entry.first_at > settings().circuit_patience
            )
        entry.failed += is_own
        if self.circuit.holds(source) and not (
            entry.is_probe and is_own and not self.circuit.is_patient
        ):
            self._over(entry, NOT_RUN)
        elif entry.failed >= settings().max_attempts:
            self._over(entry, outcome.refusal or Exhausted(outcome, entry.failed))
        elif entry.work.is_stopped:
            self._over(entry, NOT_RUN)
        else:
            if is_refused:
                self._refused[entry.account_id] = entry
            pause = pause_before_retry(outcome, entry.attempts)
            self._pausing[entry] = asyncio.get_running_loop().call_later(pause, self._again, entry)

    def _again(self, entry: Entry) -> None:
        del self._pausing[entry]
        entry.is_sent = False
        self._waiting.again(entry)
        self._goes_on(entry)
        self._fill()

    def _goes_on(self, entry: Entry) -> None:
        if self._refused.get(entry.account_id) is entry:
            del self._refused[entry.account_id]

    def _is_held(self, entry: Entry) -> bool:
        return self.circuit.holds(entry.work.source) and not entry.is_probe

    def _verdict(self, source: Source, outcome: Outcome | None) -> Verdict:
        if isinstance(outcome, Answered | Refused):
            return Verdict.GOOD
        if outcome is None or not (outcome.is_overload or outcome.is_timeout):
            return Verdict.BROKEN
        if not self.circuit.is_doubted(source):
            return Verdict.BUSY
        if source.account_id not in self._doubted:
            self._doubted.add(source.account_id)
            self._concurrency.restart()
        return Verdict.BROKEN

    def _over(self, entry: Entry, outcome: Ended | NotRun) -> None:
        account = entry.account_id
        self.unfinished -= 1
        self._of_account[account] -= 1
        if not self._of_account[account]:
            del self._of_account[account]
        if entry.is_probe:
            self.circuit.probe_over(is_spent=isinstance(outcome, Exhausted | Refused))
        entry.work.over(entry.line, outcome)
        if account in self._full and self._room_of(account):
            self._full.discard(account)
            self._on_room()
        if account not in self._of_account:
            self._waiting.forget(account)
            self._full.discard(account)
            self._doubted.discard(account)


def _share(ceiling: int, workers: int) -> int:
    # More workers than requests: each may send one all the same.
    return max(1, ceiling // workers)


def _is_answered(outcome: Outcome | None) -> bool | None:
    """None: it does not tell, as the backend was busy or the request was not sent or cut off."""
    if isinstance(outcome, Retryable):
        return None if outcome.is_overload else False
    return None if outcome is None else True


def _used(outcome: Outcome | None) -> int | None:
    """Tokens; None where there was no answer."""
    return (
        outcome.usage.input_tokens + outcome.usage.output_tokens
        if isinstance(outcome, Answered)
        else None
    )


def pause_before_retry(outcome: Retryable, attempt: int) -> float:
    """Seconds: what the backend asked for (capped), and full jitter over a doubling ceiling on top."""
    ceiling = min(settings().retry_cap, settings().retry_base * 2.0 ** min(attempt - 1, 30))
    asked = min(outcome.retry_after or 0.0, settings().retry_after_cap)
    return asked + random.uniform(0, ceiling)

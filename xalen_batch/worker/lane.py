"""A lane: one backend as one worker process uses it.

Lines wait in a fair queue. Coroutines, at most as many as the limit on requests in flight, take
them from there and send one after the other.
"""

import asyncio
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
from xalen_batch.worker.circuit_breaker import Circuit, Source, State
from xalen_batch.worker.combine import Combiner, halves, request_of
from xalen_batch.worker.concurrency import Concurrency, Signal, share_of
from xalen_batch.worker.fair_queue import FairQueue
from xalen_batch.worker.outcome import failed_attempt, is_answered, pause_before_retry, used
from xalen_batch.worker.pace import Pace
from xalen_batch.worker.silence import Silence
from xalen_batch.worker.work import Entry, SendableLine, Work

logger = log.get(__name__)

# Seconds of work that wait behind the requests in flight, so that the backend stays busy while the
# next task is claimed.
BACKLOG = 0.5
# A lane whose limit has fallen keeps at most this many times the lines that it would claim.
SURPLUS = 4
# Refusals after which the pause before the retry doubles no further (2 s with the default
# settings), if the request was alone in flight. Other clients may fill the backend; a longer pause
# would miss the moments between their requests.
DOUBLING_REFUSALS = 3


class Lane:
    """Sends lines to one backend; event loop thread only.

    `unfinished`, `concurrency`, `limit`, `free_capacity`, `free_by_account`, `silence` and the
    circuit's readable state may be read from any thread.

    `ceiling`: most requests in flight at the backend over all worker processes, which share it
    equally. `rates`: its limits per minute. `buffer`: bounds the bytes of its answers. `latency`:
    seconds of a usual answer to one line; the log warns of much longer ones. `most_inputs`: of
    embeddings, in a request that combines lines. `on_capacity` is called on the event loop thread
    when an account has free capacity again.
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
        most_inputs: int = 1,
        on_capacity: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backend = backend
        self.buffer = buffer or Buffer()
        self._rates = rates
        self._clock = clock
        self._on_capacity = on_capacity
        self.circuit = Circuit(name, clock)
        self.silence = Silence(clock)
        self.unfinished = 0
        self._of_account: Counter[str] = Counter()  # Unfinished lines of each account.
        # Accounts that had no free capacity when it was last computed.
        self._full: set[str] = set()
        self._ceiling = ceiling
        self.most: int | None = None
        self.on_ended: Callable[[], object] = lambda: None  # Called at the end of each request.
        self.concurrency = Concurrency(share_of(ceiling, workers), clock)
        self._waiting: FairQueue[Entry] = FairQueue()
        self._combiner = Combiner(most_inputs)
        slowest = latency and latency * most_inputs
        self._pace = Pace(name, lambda: self.unfinished - self._lines_in_flight, slowest)
        # Entries that wait for their retry.
        self._pausing: dict[Entry, asyncio.TimerHandle] = {}
        # By account, an entry that met an overload signal as the only request in flight. Until its
        # retry, nothing else of the account is sent.
        self._refused: dict[str, Entry] = {}
        self._refusals = 0  # Such overload signals since the backend's last answer.
        # Accounts for which alone the backend is busy; their overload signals are ignored.
        self._doubted: set[str] = set()
        self._refill: asyncio.TimerHandle | None = None
        # The entry that each coroutine sends now.
        self._coroutines: dict[asyncio.Task[None], Entry | None] = {}

    @property
    def limit(self) -> int:
        """Most requests that may be in flight now."""
        return self.concurrency.limit

    @property
    def free_capacity(self) -> int:
        """Lines that should be claimed of an account with lines here; 0: no claim is worth it.

        Without any such account: of any account. New accounts get their claim from a hint.
        """
        free = self.free_by_account()
        return max((free[account] for account in free if account is not None), default=free[None])

    def free_by_account(self) -> Mapping[str | None, int]:
        """Lines that should be claimed now, by account; the key None stands for all other accounts.

        The target is a full limit in flight and a backlog behind it: enough to stay busy during a
        claim, and little enough that later claims can still be fair. Less than half a backlog
        missing counts as 0, since a claim has a cost.
        """
        if self.buffer.is_full:
            return dict.fromkeys((None, *self._of_account), 0)
        admission = self.circuit.admission
        if admission is not None:
            return {None: admission.lines}
        return {account: self._free_for(account) for account in (None, *self._of_account)}

    @property
    def in_flight(self) -> int:
        return self.concurrency.in_flight

    def share(self, workers: int, most: int | None = None) -> None:
        """Take a share of the ceiling; `most`: the permits that live calls leave, None: all."""
        self.most = most
        self.concurrency.ceiling = min(share_of(self._ceiling, workers), most or self._ceiling)
        self._fill()

    def add(self, work: Work, lines: Sequence[SendableLine]) -> None:
        """Send these lines, after the lines of the same batch that are here already."""
        source = work.source
        self.unfinished += len(lines)
        self._of_account[source.account_id] += len(lines)
        entries = [Entry(work, (line,)) for line in lines]
        if self.circuit.holds(source):
            probes = self.circuit.probe(source, len(lines))
            for entry in entries[:probes]:
                entry.is_probe = True
            for entry in entries[probes:]:
                self._over(entry, NOT_RUN)
            entries = entries[:probes]
        self._waiting.add(source, entries)
        if not self._free_for(source.account_id):
            self._full.add(source.account_id)
        self._fill()

    def stop(self, work: Work) -> None:
        """Return the lines of a stopped work that are not in flight."""
        self._give_back(lambda entry: entry.work is work)
        # Coroutines that wait for a grant of the rate limit.
        self._cancel(work, is_sent=False)
        self._fill()

    def cut(self, work: Work) -> None:
        """Cancel the requests of a stopped work that are in flight."""
        self._cancel(work, is_sent=True)

    async def close(self) -> None:
        """Return unused grants of the rate limit. No line may be unfinished any more."""
        self._pace.close()
        if self._rates is not None:
            await self._rates.close()

    def _free_for(self, account: str | None) -> int:
        if self._rates is not None and self._rates.wait > BACKLOG:
            return 0
        lines = sum(
            lines
            for other, lines in list(self._of_account.items())
            if other == account or self._waiting.is_answered(other)
        )
        backlog, per_request = self._backlog, self._combiner.lines
        missing = int((self.limit + backlog) * per_request) - lines
        return missing if 2 * missing > backlog * per_request else 0

    @property
    def _backlog(self) -> int:
        """Requests that should wait behind those in flight."""
        return max(self.limit, int(self.concurrency.goodput * BACKLOG))

    @property
    def _lines_in_flight(self) -> int:
        return sum(len(entry.lines) for entry in self._coroutines.values() if entry is not None)

    def _return_surplus(self) -> None:
        """Return work that this worker would not run soon, for another one to claim.

        Other workers may fill a backend that they share, so that the limit of this one falls far
        below that for which it has claimed lines. Lines in flight still end here.
        """
        most = int(SURPLUS * (self.limit + self._backlog) * self._combiner.lines)
        has_fallen = self.limit < self.concurrency.ceiling
        if not has_fallen or self.unfinished <= most or self.circuit.state is not State.CLOSED:
            return
        in_flight = [entry for entry in self._coroutines.values() if entry is not None]
        lines: Counter[Work] = Counter()
        for entry in (*in_flight, *self._pausing, *self._waiting):
            lines[entry.work] += len(entry.lines)
        kept = 0
        for work, count in lines.items():
            if kept + count <= most:
                kept += count
            else:
                work.is_stopped = True
                self.stop(work)

    def _cancel(self, work: Work, *, is_sent: bool) -> None:
        for coroutine, entry in list(self._coroutines.items()):
            if entry is not None and entry.work is work and entry.is_sent is is_sent:
                coroutine.cancel()

    def _give_back(self, is_wanted: Callable[[Entry], bool]) -> None:
        pausing = [entry for entry in self._pausing if is_wanted(entry)]
        for entry in pausing:
            self._pausing.pop(entry).cancel()
            self._release_account(entry)
        for entry in pausing + self._waiting.take(is_wanted):
            self._over(entry, NOT_RUN)

    def _next(self) -> Entry | None:
        if self._rates is not None and self._rates.wait > BACKLOG:
            # Grants are first come, first served, so only a few coroutines may queue for them. The
            # other lines wait here, where accounts take turns.
            if self._waiting and self._refill is None:
                self._refill = asyncio.get_running_loop().call_later(
                    self._rates.wait - BACKLOG, self._refill_due
                )
            return None
        entry = self._waiting.next(self.limit, self._refused)
        if entry is not None and self._combiner.most > 1:
            self._combiner.fill(entry, self._waiting)
        return entry

    def _refill_due(self) -> None:
        self._refill = None
        self._fill()

    def _fill(self) -> None:
        """Start coroutines until no line may be sent or the limit is reached."""
        entry = self._next()
        while entry is not None:
            coroutine = asyncio.create_task(self._send_lines(entry))
            self._coroutines[coroutine] = None
            coroutine.add_done_callback(self._coroutine_ended)
            entry = self._next()

    def _coroutine_ended(self, coroutine: asyncio.Task[None]) -> None:
        del self._coroutines[coroutine]
        self._fill()

    async def _send_lines(self, entry: Entry | None) -> None:
        """Send line after line, until none may be sent or the limit has fallen."""
        me = asyncio.current_task()
        assert me is not None
        while entry is not None:
            self._coroutines[me] = entry
            await self._run(entry)
            self._coroutines[me] = None
            entry = self._next()
            if len(self._coroutines) < self.limit:
                self._fill()

    async def _run(self, entry: Entry) -> None:
        outcome = None
        try:
            outcome = await self._send(entry)
        finally:
            self._waiting.ended(entry, is_answered=is_answered(outcome))
            if outcome is None:
                self._over(entry, NOT_RUN)
        if isinstance(outcome, Retryable):
            self._failed(entry, outcome)
        elif outcome is not None and entry.is_combined:
            self._split(entry, outcome)
        elif outcome is not None:
            self._over(entry, outcome)

    def _split(self, entry: Entry, outcome: Answered | Refused) -> None:
        """End each line of a combined request, or send them again as two requests."""
        answers = self._combiner.split(entry, outcome)
        if answers is None:
            # One line may be the reason; the others shall not fail with it.
            for half in reversed(halves(entry)):
                self._waiting.again(half)
            return
        for line, part, answer in zip(entry.lines, entry.parts, answers, strict=True):
            self._over(Entry(entry.work, (line,), parts=(part,)), answer)

    async def _send(self, entry: Entry) -> Outcome | None:
        """Send one request. None: it was not sent; its work was stopped or its source is held."""
        source = entry.work.source
        if entry.work.is_stopped or self._is_held(entry):
            return None
        request, expected = request_of(entry), 0
        if self._rates is not None:
            expected = estimate(request.body, request.endpoint)
            await self._rates.admit(expected)
            if self._is_held(entry):
                # The circuit opened while this coroutine waited for its grant.
                self._rates.settle(expected, None)
                return None
        entry.attempts, entry.is_sent = entry.attempts + 1, True
        number = self.circuit.sent(source)
        if not entry.first:
            entry.first, entry.first_at = number, self._clock()
        epoch, timed, outcome = self.concurrency.started(), self._pace.started(), None
        try:
            outcome = await self.backend.send(request)
        except Exception as error:
            # A bug of ours. It costs this line an attempt, and its neighbours go on.
            logger.error("line.crashed", request_id=request.request_id, **log.cause(error))
            outcome = Retryable(f"an internal error ({type(error).__name__})")
        finally:
            self.concurrency.ended(epoch, self._signal(source, outcome))
            entry.seconds = self._pace.ended(timed, source, outcome)
            if self._rates is not None:
                self._rates.settle(expected, used(outcome))
            self.on_ended()
        if not isinstance(outcome, Retryable):
            self.silence.over()
            self._refusals = 0
            self._succeeded(source, number, outcome)
        return outcome

    def _succeeded(self, source: Source, number: int, outcome: Outcome) -> None:
        self._doubted.discard(source.account_id)
        is_witness = not self.circuit.holds(source)
        if self.circuit.succeeded(source, number, is_answer=isinstance(outcome, Answered)):
            if is_witness:
                # The held sources caused the failures, not the load.
                self.concurrency.restart()
            self._on_capacity()

    def _failed(self, entry: Entry, outcome: Retryable) -> None:
        source = entry.work.source
        entry.unanswered(failed_attempt(outcome, entry.seconds))
        self.silence.failed(outcome.reason)
        # Overload lowers the limit. Overload of the only request in flight counts as a broken
        # backend.
        is_busy = outcome.is_overload and not self.circuit.is_doubted(source)
        is_refused = is_busy and not self.concurrency.in_flight
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
            # Without this, the last lines of a batch would wait for an answer to a later request,
            # and no later request is sent.
            is_own = (
                self.circuit.is_vouched
                or self._clock() - entry.first_at > settings().circuit_patience
            )
        # One line of a combined request may be the reason. A failure counts against a line that is
        # alone.
        is_divided = is_own and entry.is_combined
        entry.failed += is_own and not is_divided
        is_held = self.circuit.holds(source)
        if is_held and entry.is_probe and is_own and not self.circuit.is_patient:
            is_held = False
        if is_held:
            self._over(entry, NOT_RUN)
        elif entry.failed >= settings().max_attempts:
            self._over(entry, outcome.refusal or Exhausted(outcome, entry.failed))
        elif entry.work.is_stopped:
            self._over(entry, NOT_RUN)
        else:
            attempt = entry.attempts
            if is_refused:
                self._refused[entry.account_id] = entry
                self._refusals += 1
                attempt = min(attempt, self._refusals, DOUBLING_REFUSALS)
            elif is_busy:
                # The limit is one lower for this refusal, which paces the first retry.
                attempt -= 1
            for each in halves(entry) if is_divided else [entry]:
                pause = pause_before_retry(outcome, attempt)
                timer = asyncio.get_running_loop().call_later(pause, self._retry, each)
                self._pausing[each] = timer
        if is_busy:
            self._return_surplus()

    def _retry(self, entry: Entry) -> None:
        del self._pausing[entry]
        entry.is_sent = False
        self._waiting.again(entry)
        self._release_account(entry)
        self._return_surplus()
        self._fill()

    def _release_account(self, entry: Entry) -> None:
        if self._refused.get(entry.account_id) is entry:
            del self._refused[entry.account_id]

    def _is_held(self, entry: Entry) -> bool:
        return self.circuit.holds(entry.work.source) and not entry.is_probe

    def _signal(self, source: Source, outcome: Outcome | None) -> Signal:
        if isinstance(outcome, Answered | Refused):
            return Signal.GOOD
        if outcome is None or not (outcome.is_overload or outcome.is_timeout):
            return Signal.BROKEN
        if not self.circuit.is_doubted(source):
            return Signal.REFUSED if outcome.is_overload else Signal.TIMEOUT
        if source.account_id not in self._doubted:
            self._doubted.add(source.account_id)
            self.concurrency.restart()
        return Signal.BROKEN

    def _over(self, entry: Entry, outcome: Ended | NotRun) -> None:
        account = entry.account_id
        self.unfinished -= len(entry.lines)
        self._of_account[account] -= len(entry.lines)
        if not self._of_account[account]:
            del self._of_account[account]
        if entry.is_probe:
            self.circuit.probe_over(is_spent=isinstance(outcome, Exhausted | Refused))
        for line in entry.lines:
            entry.work.over(line, outcome)
        if account in self._full and self._free_for(account):
            self._full.discard(account)
            self._on_capacity()
        if account not in self._of_account:
            self._waiting.forget(account)
            self._full.discard(account)
            self._doubted.discard(account)

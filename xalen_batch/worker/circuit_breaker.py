"""The circuit breaker of one backend in one worker process: it tells whose fault failures are, and
leaves a broken backend alone.

A source is one batch. Its failures count against the backend only while no other source is a
witness that the backend works. A witness has an answer to a request that was sent after the
failures began, so the last answers before an outage prove nothing.

States:

    closed --> open:        a source failed `circuit_failures` times in a row, or spent its retry budget, and there is no witness
    open --> half open:     the pause is over
    half open --> open:     all probes ended, and none was answered
    open, half open --> closed: the backend answered a request that was sent after the failures began

What happens to the lines of a source:

    state       it failed since the last answer     it did not
    closed      sent                                sent
    open        handed back unrun                   claimed one at a time and sent at once (up to TRIED_ACCOUNTS accounts)
    half open   `width` lines are probes            as above

A probe that fails is handed back, so an outage costs no line. Once `circuit_patience` has passed
without an answer, probes run to the end of their attempts, and each round has twice as many: a
batch that can never succeed ends with its lines failed.
"""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Self, TypeVar
from uuid import UUID

from xalen_batch import ids, log
from xalen_batch.config import settings

logger = log.get(__name__)
K = TypeVar("K")

# Retries of a source may be this share of its requests, plus an allowance at the start; more would
# feed an outage.
RETRY_SHARE = 0.2
RETRY_ALLOWANCE = 100.0
# Seconds for which an answer makes its source a witness.
TESTIMONY = 60.0
# A source's word that the backend is busy is doubted after this many refusals in a row, if there is
# a witness.
DOUBT = 10
# Accounts that try an open circuit before its pause is over, and batches that one account tries it
# with.
TRIED_ACCOUNTS = 3
TRIED_BATCHES = 3
# Share of the pause for which only new sources are claimed when it is over, if too many accounts
# had tried before.
HEAD_START = 1 / 8
# Sources that are remembered; the least recently used is forgotten.
REMEMBERED = 1_000


class Source(NamedTuple):
    """Account and batch of a line. Lines of one source succeed or fail together, as far as the
    circuit knows.

    Both are public ids: each line looks its source up 40 times, and a str caches its hash, which a
    UUID does not.
    """

    account_id: str
    batch_id: str

    @classmethod
    def of(cls, account_id: UUID, batch_id: UUID) -> Self:
        return cls(ids.render("acct", account_id), ids.render("batch", batch_id))


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


class Opening(NamedTuple):
    """What may be claimed while the circuit is not closed: `lines` at most, and none of
    `passed_over` (a batch, or all of an account).
    """

    lines: int
    passed_over: frozenset[tuple[str, str | None]] = frozenset()


@dataclass(slots=True)
class _Record:
    """A source's outcomes.

    Moments are counted in requests sent to the backend, which orders them without a clock.
    """

    # Outcomes in a row that were no answer; of them, those that show a broken backend; and when the
    # row began.
    bad: int = 0
    failures: int = 0
    began: int = 0
    budget: float = RETRY_ALLOWANCE
    # When the budget was last whole.
    whole: int = 0
    # The latest request that was answered, and by the clock when it was.
    answered: int = -1
    answered_at: float = 0.0

    @property
    def is_sound(self) -> bool:
        """Whether most of its requests are answered."""
        return self.budget > RETRY_ALLOWANCE / 2


class Circuit:
    """Changed on the event loop only; `opening`, `pause_of` and `state` may be read from any
    thread.
    """

    def __init__(self, name: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._records: OrderedDict[Source, _Record] = OrderedDict()
        # By account, for how busy the backend is: an account may have any number of batches.
        self._accounts: OrderedDict[str, _Record] = OrderedDict()
        self._sent = 0
        self._answered = -1
        # None: closed.
        self._until: float | None = None
        self._opened_at = 0.0
        # When the backend last answered anybody, and whether that vouches for its setup while the
        # circuit is not closed.
        self._answered_at = -math.inf
        self._is_vouched = False
        # An answer to a later request closes the circuit.
        self._broken_since = 0
        self._tried: set[Source] = set()
        # What the failure said that opened it.
        self._reason = ""
        self._status: int | None = None
        # Probes under way, and whether one of this round ran out of its attempts.
        self._probing = 0
        self._is_spent = False
        self.width = 1

    @property
    def state(self) -> State:
        if self._until is None:
            return State.CLOSED
        return State.OPEN if self._clock() < self._until else State.HALF_OPEN

    @property
    def is_patient(self) -> bool:
        """Whether probes that fail are handed back, as the backend may only be away for a while."""
        patience = (
            min(TESTIMONY, settings().circuit_patience)
            if self._is_vouched
            else settings().circuit_patience
        )
        return self._until is None or self._clock() < self._opened_at + patience

    @property
    def is_vouched(self) -> bool:
        """Whether an answer of the last TESTIMONY seconds shows that the backend is set up rightly.

        A refusal that the model server explains (403, 404 …) is then the line's own.
        """
        return (
            self._is_vouched
            if self._until is not None
            else self._clock() - self._answered_at <= TESTIMONY
        )

    @property
    def opening(self) -> Opening | None:
        """What may be claimed; None: anything."""
        until = self._until
        if until is None:
            return None
        tried = list(self._tried)
        accounts = Counter(source.account_id for source in tried)
        # A source that has failed since before the last answer says nothing of the backend.
        fresh = {
            source.account_id
            for source in tried
            if (record := self._records.get(source)) and record.began >= self._answered
        }
        is_crowded = len(fresh) >= TRIED_ACCOUNTS
        is_half_open = self._clock() >= until and not self._probing
        if is_half_open and not (
            is_crowded and self._clock() < until + HEAD_START * settings().circuit_pause
        ):
            return Opening(self.width)
        passed_over = {
            (account, batch if accounts[account] < TRIED_BATCHES else None)
            for account, batch in tried
        }
        return Opening(0 if is_crowded and not is_half_open else 1, frozenset(passed_over))

    def pause_of(self, source: Source) -> float:
        """Seconds until lines of this source may be claimed again; 0: now."""
        until = self._until
        return (
            max(0.0, until - self._clock()) if until is not None and source in self._tried else 0.0
        )

    def holds(self, source: Source) -> bool:
        """Whether lines of this source go back unrun, unless they are probes."""
        return self._until is not None and source in self._tried

    def probe(self, source: Source, lines: int) -> int:
        """How many of these lines of a held source are sent as probes."""
        if self.state is not State.HALF_OPEN or self._probing:
            return 0
        self._probing = min(lines, self.width)
        return self._probing

    def probe_over(self, *, is_spent: bool) -> None:
        """A probe has ended. `is_spent`: it ran out of its attempts."""
        self._probing -= 1
        self._is_spent |= is_spent
        if self._probing or self._until is None:
            return
        self.width *= 2 if self._is_spent else 1
        self._rest()

    def sent(self, source: Source) -> int:
        """A request goes out. Returns its number, which `succeeded` and `answered_since` take."""
        record = _of(self._records, source)
        record.budget = min(RETRY_ALLOWANCE, record.budget + RETRY_SHARE)
        self._sent += 1
        return self._sent

    def succeeded(self, source: Source, request: int, *, is_answer: bool = True) -> bool:
        """The backend did its work. Returns whether that closed the circuit.

        `is_answer`: as opposed to a refusal, which a server may send whose model is broken.
        """
        now = self._clock()
        for record in (_of(self._records, source), _of(self._accounts, source.account_id)):
            record.bad = record.failures = 0
            if is_answer:
                record.answered_at = now
                if request > record.answered:
                    record.answered = request
        if is_answer:
            self._answered_at = now
            if request > self._answered:
                self._answered = request
        if self._until is None or request <= self._broken_since:
            return False
        self._close()
        return True

    def failed(
        self,
        source: Source,
        reason: str = "",
        status: int | None = None,
        *,
        is_broken: bool = True,
        may_be_own: bool = False,
    ) -> None:
        """The backend gave no answer. `is_broken`: as opposed to being busy. `may_be_own`: or the
        line is to blame.

        `reason` and `status` are logged if this opens the circuit.
        """
        record = _of(self._records, source)
        for row in (record, _of(self._accounts, source.account_id)):
            if not row.bad:
                row.began = self._sent
            row.bad += 1
        if not is_broken:
            return
        record.failures += 1
        if record.budget == RETRY_ALLOWANCE:
            record.whole = self._sent
        record.budget -= 1
        if self._until is not None:
            self._tried.add(source)
            return
        is_row = record.failures >= settings().circuit_failures
        since = record.began if is_row else record.whole
        if (is_row or record.budget < 0) and not self._has_witness(
            self._records.values(), record, since
        ):
            self._broken_since = since if is_row else self._sent
            self._is_vouched = may_be_own and self.is_vouched
            self._open(source, reason, status)

    def answered_since(self, request: int) -> bool:
        """Whether the backend has answered anybody's request that was sent after this one."""
        return self._answered > request

    def is_doubted(self, source: Source) -> bool:
        """Whether the backend is busy for this account only."""
        record = _of(self._accounts, source.account_id)
        return record.bad >= DOUBT and self._has_witness(
            self._accounts.values(), record, record.began
        )

    def _has_witness(self, records: Iterable[_Record], record: _Record, since: int) -> bool:
        """Whether another of these sources, which does not fail much itself, was answered since
        then.
        """
        recent = self._clock() - TESTIMONY
        return any(
            other is not record
            and other.answered > since
            and other.answered_at > recent
            and other.is_sound
            for other in records
        )

    def _open(self, by: Source, reason: str, status: int | None) -> None:
        self._tried = {by}
        for source, record in self._records.items():
            if (record.failures and record.began >= self._answered) or not record.is_sound:
                self._tried.add(source)
        self._opened_at = self._clock()
        self._reason, self._status = reason, status
        self._rest()

    def _rest(self) -> None:
        self._until = self._clock() + settings().circuit_pause
        self._is_spent = False
        sources = {
            "accounts": len({source.account_id for source in self._tried}),
            "batches": len(self._tried),
        }
        logger.warning(
            "backend.circuit_opened",
            backend=self._name,
            pause=settings().circuit_pause,
            status=self._status,
            reason=self._reason,
            open_for=round(self._clock() - self._opened_at, 1),
            **sources,
        )

    def _close(self) -> None:
        logger.info(
            "backend.circuit_closed",
            backend=self._name,
            seconds=round(self._clock() - self._opened_at, 1),
        )
        self._until = None
        self._tried.clear()
        self.width = 1
        for record in self._records.values():
            record.budget = RETRY_ALLOWANCE


def _of(records: OrderedDict[K, _Record], key: K) -> _Record:
    record = records.get(key)
    if record is None:
        record = records[key] = _Record()
        if len(records) > REMEMBERED:
            records.popitem(last=False)
    else:
        records.move_to_end(key)
    return record

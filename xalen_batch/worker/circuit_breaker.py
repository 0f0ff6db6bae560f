"""The circuit breaker of one backend in one worker process.

It tells failures of the backend from failures of one batch's lines, and sends little to a backend
that is broken.

A source is one batch. The failures of a source count against the backend only if no other source is
a witness that the backend works. A witness has an answer to a request that was sent after the
failures began: answers to earlier requests may date from before an outage.

States, and the functions that change them:

    from               to         when
    closed             open       a source failed `circuit_failures` times in a row, or spent its
                                  retry budget, and there is no witness (`failed`)
    open               half open  the pause is over (`state`)
    half open          open       all probes have ended, none was answered (`probe_over`)
    open or half open  closed     the backend answered a request that was sent after the failures
                                  began (`succeeded`)

What happens to the lines of a source:

    state      held (failed since the last answer)  not held
    closed     -                                    sent
    open       returned to their task, not sent     claimed one at a time and sent, for at most
                                                    TRIAL_ACCOUNTS accounts
    half open  `width` of them are sent as probes   as above

A failed probe is returned to its task, so an outage costs no line. Once `circuit_patience` seconds
have passed without an answer, probes use up their attempts, and each round doubles their number. So
a batch that can never succeed ends, with its lines failed.
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

# The retry budget of a source: it starts at RETRY_ALLOWANCE failures, and each request adds
# RETRY_SHARE of one. A larger budget would let retries keep an outage going.
RETRY_SHARE = 0.2
RETRY_ALLOWANCE = 100.0
# Seconds for which an answer makes its source a witness.
WITNESS_SECONDS = 60.0
# After this many failures in a row of one account, with a witness, its overload signals (429, 503,
# timeouts) no longer lower the lane's limit.
DOUBTED_AFTER = 10
# Accounts that may try an open circuit before its pause is over, and batches of one account.
TRIAL_ACCOUNTS = 3
TRIAL_BATCHES = 3
# Share of the pause by which accounts that have not tried are ahead when it is over. It applies if
# TRIAL_ACCOUNTS had tried during the pause.
HEAD_START = 1 / 8
# Sources whose history is kept; the least recently used is forgotten.
REMEMBERED = 1_000


class Source(NamedTuple):
    """Account and batch of a line: the circuit assumes that lines of one source fail together.

    Both are public ids: each line is looked up by its source some 40 times, and a str caches its
    hash, which a UUID does not.
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


class Admission(NamedTuple):
    """The bound on claims while the circuit is not closed.

    At most `lines` may be claimed, and none of `excluded`: pairs of an account and one of its
    batches, or of an account and None for all its batches.
    """

    lines: int
    excluded: frozenset[tuple[str, str | None]] = frozenset()


@dataclass(slots=True)
class _History:
    """The outcomes of one source or account; event loop thread only.

    Moments are numbers of requests sent to the backend, which are ordered without a clock.
    """

    # Outcomes in a row without an answer, how many of them show a broken backend, and when the row
    # began.
    bad: int = 0
    failures: int = 0
    began: int = 0
    budget: float = RETRY_ALLOWANCE
    # When the budget was last full.
    whole: int = 0
    # The latest request that was answered, and the clock's time of its answer.
    answered: int = -1
    answered_at: float = 0.0

    @property
    def is_sound(self) -> bool:
        """Whether most of its requests are answered."""
        return self.budget > RETRY_ALLOWANCE / 2


class Circuit:
    """The circuit breaker itself; changed on the event loop thread only.

    `admission`, `pause_of`, `holds` and `state` may be called from any thread.
    """

    def __init__(self, name: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._records: OrderedDict[Source, _History] = OrderedDict()
        # Histories by account tell for whom the backend is busy; an account has any number of
        # batches.
        self._accounts: OrderedDict[str, _History] = OrderedDict()
        self._sent = 0
        # The latest request that was answered.
        self._answered = -1
        # When the pause ends, by the clock; None while the circuit is closed.
        self._until: float | None = None
        self._opened_at = 0.0
        # When the backend last answered, by the clock; and whether that proves its setup while
        # the circuit is not closed.
        self._answered_at = -math.inf
        self._is_vouched = False
        # An answer to a later request than this closes the circuit.
        self._broken_since = 0
        # The sources whose lines are sent only as probes.
        self._held: set[Source] = set()
        # Reason and status of the failure that opened the circuit, for the log.
        self._reason = ""
        self._status: int | None = None
        # Probes in flight, and whether one of this round used up its attempts.
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
        """Whether failed probes are returned to their task, as the outage may end soon."""
        patience = settings().circuit_patience
        if self._is_vouched:
            patience = min(WITNESS_SECONDS, patience)
        return self._until is None or self._clock() < self._opened_at + patience

    @property
    def is_vouched(self) -> bool:
        """Whether an answer within WITNESS_SECONDS proves that the backend is set up correctly.

        A refusal that the model server explains (403, 404 …) is then the line's own.
        """
        if self._until is not None:
            return self._is_vouched
        return self._clock() - self._answered_at <= WITNESS_SECONDS

    @property
    def admission(self) -> Admission | None:
        """The bound on claims; None while the circuit is closed."""
        until = self._until
        if until is None:
            return None
        held = list(self._held)
        batches = Counter(source.account_id for source in held)
        # A source that has failed since before the backend's last answer proves no outage.
        trying = set()
        for source in held:
            record = self._records.get(source)
            if record is not None and record.began >= self._answered:
                trying.add(source.account_id)
        is_crowded = len(trying) >= TRIAL_ACCOUNTS
        is_half_open = self._clock() >= until and not self._probing
        head_start_ends = until + HEAD_START * settings().circuit_pause
        if is_half_open and (not is_crowded or self._clock() >= head_start_ends):
            return Admission(self.width)
        excluded = frozenset(
            (account, batch if batches[account] < TRIAL_BATCHES else None)
            for account, batch in held
        )
        return Admission(1 if is_half_open or not is_crowded else 0, excluded)

    def pause_of(self, source: Source) -> float:
        """Seconds until lines of this source may be claimed again; 0 if they may be now."""
        until = self._until
        if until is None or source not in self._held:
            return 0.0
        return max(0.0, until - self._clock())

    def holds(self, source: Source) -> bool:
        """Whether lines of this source are returned to their task, unless they are probes."""
        return self._until is not None and source in self._held

    def probe(self, source: Source, lines: int) -> int:
        """Begin a round of probes. Returns how many of a held source's `lines` are probes."""
        if self.state is not State.HALF_OPEN or self._probing:
            return 0
        self._probing = min(lines, self.width)
        return self._probing

    def probe_over(self, *, is_spent: bool) -> None:
        """A probe has ended. `is_spent`: it used up its attempts."""
        self._probing -= 1
        self._is_spent |= is_spent
        if self._probing or self._until is None:
            return
        self.width *= 2 if self._is_spent else 1
        self._start_pause()

    def sent(self, source: Source) -> int:
        """A request is being sent. Returns its number, for `succeeded` and `answered_since`."""
        record = _of(self._records, source)
        record.budget = min(RETRY_ALLOWANCE, record.budget + RETRY_SHARE)
        self._sent += 1
        return self._sent

    def succeeded(self, source: Source, request: int, *, is_answer: bool = True) -> bool:
        """The backend answered or refused. Returns whether that closed the circuit.

        `is_answer`: False for a refusal, which a server may send although its model is broken.
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
        """The backend gave no answer; may open the circuit.

        `is_broken`: False if the backend is busy. `may_be_own`: the line may be the cause. `reason`
        and `status` are logged if the circuit opens.
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
            self._held.add(source)
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
        """Whether the backend has answered a request that was sent after this one."""
        return self._answered > request

    def is_doubted(self, source: Source) -> bool:
        """Whether the backend is busy for this account only: others are answered meanwhile."""
        record = _of(self._accounts, source.account_id)
        return record.bad >= DOUBTED_AFTER and self._has_witness(
            self._accounts.values(), record, record.began
        )

    def _has_witness(self, records: Iterable[_History], record: _History, since: int) -> bool:
        """Whether another of these, which seldom fails, got an answer to a later request."""
        recent = self._clock() - WITNESS_SECONDS
        return any(
            other is not record
            and other.answered > since
            and other.answered_at > recent
            and other.is_sound
            for other in records
        )

    def _open(self, by: Source, reason: str, status: int | None) -> None:
        self._held = {by}
        for source, record in self._records.items():
            if (record.failures and record.began >= self._answered) or not record.is_sound:
                self._held.add(source)
        self._opened_at = self._clock()
        self._reason, self._status = reason, status
        self._start_pause()

    def _start_pause(self) -> None:
        self._until = self._clock() + settings().circuit_pause
        self._is_spent = False
        sources = {
            "accounts": len({source.account_id for source in self._held}),
            "batches": len(self._held),
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
        self._held.clear()
        self.width = 1
        for record in self._records.values():
            record.budget = RETRY_ALLOWANCE


def _of(records: OrderedDict[K, _History], key: K) -> _History:
    record = records.get(key)
    if record is None:
        record = records[key] = _History()
        if len(records) > REMEMBERED:
            records.popitem(last=False)
    else:
        records.move_to_end(key)
    return record

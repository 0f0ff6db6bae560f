"""The fair queue of a lane: accounts take turns, and so do the batches of each account.

The account with the fewest requests in flight is next, and of it the batch with the fewest.
Fairness counts requests in flight, not requests sent: an account with slow or hanging requests gets
no larger share of the backend than one with fast requests. A small batch ends soon, however many
lines of its account were claimed before it.
"""

from collections import Counter, deque
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from xalen_batch.worker.circuit_breaker import Source


class Queued(Hashable, Protocol):
    @property
    def source(self) -> Source: ...


E = TypeVar("E", bound=Queued)


class _LeastInFlight:
    """Chooses the account or batch with the fewest requests in flight.

    Of equals, the one that was served longest ago.
    """

    def __init__(self) -> None:
        self.in_flight: Counter[str] = Counter()
        self.total_in_flight = 0
        # For each, the number of the request that was last served to it.
        self._served: dict[str, int] = {}
        self._requests = 0

    def next(self, able: Iterable[str]) -> str:
        ids = list(able)
        if len(ids) == 1:
            return ids[0]
        return min(ids, key=lambda id: (self.in_flight[id], self._served.get(id, 0)))

    def serve(self, id: str) -> None:
        self.in_flight[id] += 1
        self.total_in_flight += 1
        self._requests += 1
        self._served[id] = self._requests

    def ended(self, id: str) -> None:
        self.in_flight[id] -= 1
        self.total_in_flight -= 1
        if not self.in_flight[id]:
            del self.in_flight[id]

    def forget(self, id: str) -> None:
        self._served.pop(id, None)


class _Account(Generic[E]):
    """The waiting entries of one account: a FIFO queue for each batch."""

    def __init__(self) -> None:
        self.waiting: dict[str, deque[E]] = {}
        self.turns = _LeastInFlight()

    def of(self, batch: str) -> deque[E]:
        return self.waiting.setdefault(batch, deque())

    def next(self) -> E:
        batch = self.turns.next(self.waiting)
        entry = self.waiting[batch].popleft()
        self.turns.serve(batch)
        if not self.waiting[batch]:
            del self.waiting[batch]
        return entry

    def beside(self, batch: str, takes: Callable[[E], bool]) -> list[E]:
        waiting, taken = self.waiting.get(batch), []
        while waiting and takes(waiting[0]):
            taken.append(waiting.popleft())
        if not waiting:
            self.waiting.pop(batch, None)
        return taken

    def ended(self, batch: str) -> None:
        self.turns.ended(batch)
        if batch not in self.waiting and not self.turns.in_flight[batch]:
            self.turns.forget(batch)

    def take(self, is_wanted: Callable[[E], bool]) -> list[E]:
        taken: list[E] = []
        for batch, waiting in list(self.waiting.items()):
            found = [entry for entry in waiting if is_wanted(entry)]
            if not found:
                continue
            taken += found
            if len(found) == len(waiting):
                del self.waiting[batch]
            else:
                self.waiting[batch] = deque(entry for entry in waiting if not is_wanted(entry))
        return taken


class FairQueue(Generic[E]):
    """Waiting entries; event loop thread only, except `is_answered` (any thread).

    An entry that `next` returns is in flight until `ended`.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, _Account[E]] = {}
        self._turns = _LeastInFlight()
        # Accounts whose last request was answered or refused.
        self._answered: set[str] = set()

    def __bool__(self) -> bool:
        return any(account.waiting for account in self._accounts.values())

    def __iter__(self) -> Iterator[E]:
        for account in self._accounts.values():
            for waiting in account.waiting.values():
                yield from waiting

    def add(self, source: Source, entries: Sequence[E]) -> None:
        """Append entries of one batch to its queue."""
        if entries:
            self._of(source).extend(entries)

    def again(self, entry: E) -> None:
        """Put an entry before all others of its batch, for its retry."""
        self._of(entry.source).appendleft(entry)

    def next(self, limit: int, held: Container[str] = ()) -> E | None:
        """The next entry to send; None if `limit` requests are in flight or none may be sent.

        Accounts in `held` are passed over.
        """
        in_flight = self._turns.in_flight
        free = limit - self._turns.total_in_flight
        if free <= 0:
            return None
        # An account whose last request was not answered gets at most half of the slots that the
        # others leave, as all its requests may hang.
        able = [
            id
            for id, account in self._accounts.items()
            if account.waiting and id not in held and (id in self._answered or in_flight[id] < free)
        ]
        if not able:
            return None
        account = self._turns.next(able)
        self._turns.serve(account)
        return self._accounts[account].next()

    def beside(self, entry: E, takes: Callable[[E], bool]) -> list[E]:
        """Remove and return the entries that wait first in the batch of an entry in flight.

        Up to the first that `takes` declines. They are no requests of their own.
        """
        account, batch = entry.source
        return self._accounts[account].beside(batch, takes)

    def ended(self, entry: E, *, is_answered: bool | None) -> None:
        """The request has ended. `is_answered` None: it tells nothing of the backend."""
        account, batch = entry.source
        self._turns.ended(account)
        self._accounts[account].ended(batch)
        if is_answered:
            self._answered.add(account)
        elif is_answered is False:
            self._answered.discard(account)

    def is_answered(self, account: str) -> bool:
        """Whether the account's last request was answered or refused."""
        return account in self._answered

    def take(self, is_wanted: Callable[[E], bool]) -> list[E]:
        """Remove and return the waiting entries for which `is_wanted` is true."""
        return [entry for account in self._accounts.values() for entry in account.take(is_wanted)]

    def forget(self, account: str) -> None:
        """Drop an account without lines here."""
        self._answered.discard(account)
        self._accounts.pop(account, None)
        self._turns.forget(account)

    def _of(self, source: Source) -> deque[E]:
        return self._accounts.setdefault(source.account_id, _Account()).of(source.batch_id)

"""The lines that wait in a lane: one FIFO for each account, and the account with the fewest requests in flight is next.

Fairness is by requests in flight, and not by requests sent, so an account whose requests hang or take long gets no more of the
backend than one whose requests are quick.
"""

from collections import Counter, deque
from collections.abc import Callable, Container, Hashable, Iterable
from typing import Generic, Protocol, TypeVar
from uuid import UUID


class Queued(Hashable, Protocol):
    @property
    def account_id(self) -> UUID: ...


E = TypeVar("E", bound=Queued)


class FairQueue(Generic[E]):
    """`next` takes an entry, which is in flight from then on until `ended`."""

    def __init__(self) -> None:
        self._waiting: dict[UUID, deque[E]] = {}
        self._in_flight: Counter[UUID] = Counter()
        # When each account was last served, counted in requests.
        self._served: dict[UUID, int] = {}
        self._requests = 0
        # Accounts whose last request was answered.
        self._answered: set[UUID] = set()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, entries: Iterable[E]) -> None:
        """Behind all of the same account."""
        for entry in entries:
            self._waiting.setdefault(entry.account_id, deque()).append(entry)

    def again(self, entry: E) -> None:
        """Before all of the same account: it came before them."""
        self._waiting.setdefault(entry.account_id, deque()).appendleft(entry)

    def next(self, limit: int, held: Container[UUID] = ()) -> E | None:
        """Of `limit` requests in flight at most, and not of an account that is held. None: no line may be sent now."""
        free = limit - self._in_flight.total()
        # Until it is answered, an account gets half of what the others leave: all of its requests may hang.
        able = [
            account for account in self._waiting if account not in held and (account in self._answered or self._in_flight[account] < free)
        ]
        if free <= 0 or not able:
            return None
        # Of accounts with equally many, the one that was served longest ago is first.
        account = min(able, key=lambda account: (self._in_flight[account], self._served.get(account, 0)))
        entry = self._waiting[account].popleft()
        if not self._waiting[account]:
            del self._waiting[account]
        self._in_flight[account] += 1
        self._requests += 1
        self._served[account] = self._requests
        return entry

    def ended(self, entry: E, *, is_answered: bool | None) -> None:
        """The request is over. None: it was not sent, or cut off."""
        account = entry.account_id
        self._in_flight[account] -= 1
        if not self._in_flight[account]:
            del self._in_flight[account]
        if is_answered:
            self._answered.add(account)
        elif is_answered is False:
            self._answered.discard(account)

    def is_answered(self, account: UUID) -> bool:
        """Whether the backend answered its last request."""
        return account in self._answered

    def take(self, is_wanted: Callable[[E], bool]) -> list[E]:
        """Remove the waiting entries of which this is true."""
        taken: list[E] = []
        for account, waiting in list(self._waiting.items()):
            found = [entry for entry in waiting if is_wanted(entry)]
            if found:
                taken += found
                kept = deque(entry for entry in waiting if not is_wanted(entry))
                if kept:
                    self._waiting[account] = kept
                else:
                    del self._waiting[account]
        return taken

    def forget(self, account: UUID) -> None:
        """It has no lines here any more."""
        self._answered.discard(account)
        self._served.pop(account, None)

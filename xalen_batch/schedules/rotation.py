"""Rotation: accounts fire in turn (round robin), one schedule each, so a thousand due schedules of
one delay no other.

Due schedules are read again every half second, so one that comes due meanwhile takes its place in
the round.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple
from uuid import UUID

from xalen_batch.accounts.accounts import Owner
from xalen_batch.schedules.turn import Turn

# Seconds between two readings of what is due.
READ_EVERY = 0.5
# Seconds before the same schedule is advanced again, unless its last turn was cut short.
REST = 1.0
NEVER = float("-inf")


class Due(NamedTuple):
    """A schedule with something to do.

    `only_waits`: no instant has come and no run has ended; runs wait to start.
    """

    id: UUID
    owner: Owner
    only_waits: bool


class Rotation:
    """Whose schedule is advanced next, for as long as any is due."""

    def __init__(
        self, read: Callable[[], Sequence[Due]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._stale_at = clock()
        # The ring: the first account is next.
        self._queues: dict[Owner, deque[Due]] = {}
        self._served: dict[Owner, float] = {}
        self._advanced: dict[UUID, float] = {}
        self._refused: dict[Owner, Turn] = {}

    def next(self) -> Due | None:
        """The next schedule to advance. None: nothing is due that was not advanced just now."""
        if not self._queues or self._clock() >= self._stale_at:
            self._read_again()
        if not self._queues:
            return None
        owner = next(iter(self._queues))
        queue = self._queues.pop(owner)
        due = queue.popleft()
        if queue:
            self._queues[owner] = queue
        self._served[owner] = self._advanced[due.id] = self._clock()
        return due

    def turn(self, due: Due) -> Turn:
        """A new turn for a schedule.

        Its account's refusal holds until what is due is read again.
        """
        refused = self._refused.get(due.owner)
        return Turn() if refused is None else Turn(refusal=refused.refusal)

    def end(self, due: Due, turn: Turn) -> None:
        """Note how a turn went."""
        if turn.refusal is not None:
            # Instants that come are recorded all the same; only runs that wait are left until the
            # next reading.
            self._refused[due.owner] = turn
            self._drop(due.owner, only_waits=True)
        elif turn.has_more:
            del self._advanced[due.id]
            self._queues.setdefault(due.owner, deque()).append(due)

    def leave(self, owner: Owner) -> None:
        """Leave an account to the worker that is firing it."""
        self._drop(owner, only_waits=False)

    def _drop(self, owner: Owner, *, only_waits: bool) -> None:
        """Take an account's schedules out of the round until they have rested, or those of them
        where runs only wait.
        """
        kept = deque[Due]()
        for due in self._queues.pop(owner, ()):
            if only_waits and not due.only_waits:
                kept.append(due)
            else:
                self._advanced[due.id] = self._clock()
        if kept:
            self._queues[owner] = kept

    def _read_again(self) -> None:
        due = self._read()
        now = self._clock()
        self._stale_at = now + READ_EVERY
        self._refused.clear()
        self._advanced = {one.id: self._advanced[one.id] for one in due if one.id in self._advanced}
        queues: dict[Owner, deque[Due]] = {}
        # Within an account, the schedule advanced longest ago is next; the sort keeps the order of
        # reading among the others.
        for one in sorted(due, key=lambda one: self._advanced.get(one.id, NEVER)):
            if now - self._advanced.get(one.id, NEVER) >= REST:
                queues.setdefault(one.owner, deque()).append(one)
        self._queues = {
            owner: queues[owner]
            for owner in sorted(queues, key=lambda owner: self._served.get(owner, NEVER))
        }

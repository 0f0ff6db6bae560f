"""Rotation: accounts fire round robin, one schedule each, so no account delays another.

Due schedules are read again every half second: one that comes due meanwhile joins the round.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from xalen_batch.accounts.accounts import Owner
from xalen_batch.schedules.turn import Turn

# Seconds between two readings of the due schedules.
READ_EVERY = 0.5
# Seconds between two turns of a schedule, unless the first was cut short.
REST = 1.0
NEVER = float("-inf")


class DueSchedule(NamedTuple):
    """A schedule that is due.

    `only_waits`: runs wait to start; no instant has come and no run has ended.
    """

    id: UUID
    owner: Owner
    only_waits: bool


class Rotation:
    """The order in which schedules have their turns. Used by the one thread that fires."""

    def __init__(
        self, read: Callable[[], Sequence[DueSchedule]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._stale_at = clock()
        # The ring: the first account is next.
        self._queues: dict[Owner, deque[DueSchedule]] = {}
        # When each account and each schedule last had a turn.
        self._served: dict[Owner, float] = {}
        self._advanced: dict[UUID, float] = {}
        self._refused: dict[Owner, Turn] = {}

    def __iter__(self) -> Iterator[tuple[DueSchedule, Turn]]:
        """Each schedule to advance with its turn, until `next` finds none."""
        while (due := self.next()) is not None:
            yield due, self.turn(due)

    def next(self) -> DueSchedule | None:
        """The next schedule to advance. None if every due schedule has just had its turn."""
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

    def turn(self, due: DueSchedule) -> Turn:
        """A new turn of a schedule. A refusal of its account holds until the next reading."""
        refused = self._refused.get(due.owner)
        return Turn() if refused is None else Turn(refusal=refused.refusal)

    def end(self, due: DueSchedule, turn: Turn) -> None:
        """Note the results of a turn."""
        if turn.refusal is not None:
            # Instants are still recorded: only schedules whose runs just wait are dropped, until
            # the next reading.
            self._refused[due.owner] = turn
            self._drop(due.owner, only_waits=True)
        elif turn.has_more:
            del self._advanced[due.id]
            self._queues.setdefault(due.owner, deque()).append(due)

    def leave(self, owner: Owner) -> None:
        """Leave an account to the worker that fires it."""
        self._drop(owner, only_waits=False)

    def _drop(self, owner: Owner, *, only_waits: bool) -> None:
        """Take an account's schedules out of the round until they have rested.

        `only_waits`: leave those in where an instant has come or a run has ended.
        """
        kept = deque[DueSchedule]()
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
        queues: dict[Owner, deque[DueSchedule]] = {}
        # Within an account, the schedule advanced longest ago is next. The sort is stable: those
        # never advanced keep the order of the reading.
        for one in sorted(due, key=lambda one: self._advanced.get(one.id, NEVER)):
            if now - self._advanced.get(one.id, NEVER) >= REST:
                queues.setdefault(one.owner, deque()).append(one)
        self._queues = {
            owner: queues[owner]
            for owner in sorted(queues, key=lambda owner: self._served.get(owner, NEVER))
        }

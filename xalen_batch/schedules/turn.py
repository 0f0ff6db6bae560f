"""A turn: the work that one transaction does for a schedule, which has a bound."""

from dataclasses import dataclass

from xalen_batch.errors import StorageFull, TooManyRequests

# Attempts to start a run in one transaction: each makes a batch under the account's lock.
STARTS_AT_ONCE = 10


@dataclass(slots=True)
class Turn:
    """The attempts that are left, and the results so far. Used by one thread."""

    attempts: int = STARTS_AT_ONCE
    # Why the account may start nothing now. After the first refusal its quotas are not counted
    # again in this turn.
    refusal: TooManyRequests | StorageFull | None = None
    # Attempts that started or ended their run.
    moved: int = 0
    # Whether an attempt was refused for want of attempts: its run is left for the next turn.
    is_cut: bool = False
    # Whether instants that have come are not recorded yet.
    is_behind: bool = False

    def take(self) -> bool:
        """Use up one attempt. False if none is left."""
        is_left = self.attempts > 0
        if is_left:
            self.attempts -= 1
        else:
            self.is_cut = True
        return is_left

    @property
    def has_more(self) -> bool:
        """Whether the next turn can go on at once.

        Not after a refusal, nor if no attempt of this turn moved a run: they wait for something.
        """
        return self.refusal is None and (self.is_behind or (self.is_cut and self.moved > 0))

"""A turn: how much of one schedule's work a transaction does.

What is left goes on in the next turn.
"""

from dataclasses import dataclass

from xalen_batch.errors import StorageFull, TooManyRequests

# Attempts at starting a run in one transaction: each makes a batch under the account's lock.
STARTS_AT_ONCE = 10


@dataclass(slots=True)
class Turn:
    """What one transaction may still do for a schedule."""

    attempts: int = STARTS_AT_ONCE
    # Why the account may start nothing now. After the first refusal nobody asks its quotas again in
    # this turn.
    refusal: TooManyRequests | StorageFull | None = None
    # Runs that began or ended.
    moved: int = 0
    # Whether a run was left for the next turn.
    is_cut: bool = False
    # Whether instants that have come are still to be recorded.
    is_behind: bool = False

    def take(self) -> bool:
        """Use up one attempt. False: none is left."""
        if not self.attempts:
            self.is_cut = True
            return False
        self.attempts -= 1
        return True

    @property
    def has_more(self) -> bool:
        """Whether another turn would get on with it at once.

        A turn that moved nothing waits for something else.
        """
        return self.refusal is None and (self.is_behind or (self.is_cut and self.moved > 0))

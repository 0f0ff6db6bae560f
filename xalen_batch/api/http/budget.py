"""The budget of bytes that one API process holds for its clients: bodies that arrive, and answers
that are not read yet.

Accounts share it by a dynamic threshold (Choudhury and Hahne), as the ports of a switch share its
buffers: an account may hold at most SHARE, a quarter, of the free bytes. One account alone gets a
fifth of the budget. Each account at its threshold leaves four fifths of the bytes that were free,
so there is always room for an account that holds none.

Only the event loop thread changes a budget. Any thread may read it.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from xalen_batch import memory
from xalen_batch.accounts.accounts import Owner
from xalen_batch.config import MiB, settings
from xalen_batch.errors import TooManyRequests, Unavailable

RETRY_AFTER = 1.0
# The share of the free bytes that one account may hold.
SHARE = 1 / 4
# After a peak of at least this many bytes, free memory goes back to the system at half the peak.
TRIM_AFTER = 32 * MiB


class Budget:
    """The bytes held now, by account and mode. `noun` and `remedy` are parts of its messages."""

    def __init__(self, noun: str, remedy: str, code: str) -> None:
        self._noun = noun
        self._remedy = remedy
        self._code = code
        self._held: Counter[Owner | None] = Counter()
        self._total = 0
        self._peak = 0

    def held(self, owner: Owner | None) -> int:
        """The bytes held for an account and mode, or with None for callers without a key."""
        return self._held[key(owner)]

    def take(self, owner: Owner | None, size: int) -> None:
        """Reserve bytes until they are given back.

        If they do not fit, raises TooManyRequests, or Unavailable for an account that holds none.
        """
        self._refuse_unless_fits(owner, size)
        self.add(owner, size)

    def add(self, owner: Owner | None, size: int) -> None:
        """Count bytes that are held already, even over the threshold."""
        self._held[key(owner)] += size
        self._total += size
        self._peak = max(self._peak, self._total)

    def give_back(self, owner: Owner | None, size: int) -> None:
        self._held[key(owner)] -= size
        self._total -= size
        if not self._held[key(owner)]:
            del self._held[key(owner)]
        if self._peak >= TRIM_AFTER and self._total <= self._peak // 2:
            self._peak = self._total
            memory.trim()

    @contextmanager
    def holding(self, owner: Owner | None, size: int) -> Iterator[None]:
        """`take` on entering, `give_back` on leaving."""
        self.take(owner, size)
        try:
            yield
        finally:
            self.give_back(owner, size)

    def refuse_if_over(self, owner: Owner) -> None:
        """Raise TooManyRequests while an account holds more than its threshold."""
        if self.held(owner):
            self._refuse_unless_fits(owner, 0)

    def _refuse_unless_fits(self, owner: Owner | None, size: int) -> None:
        held, free = self.held(owner), settings().held_bytes - self._total
        if held + size <= free * SHARE:
            return
        if not held:
            raise Unavailable(
                f"The server holds as many bytes of {self._noun} as it may. Send the request again"
                " in a few seconds."
            )
        raise TooManyRequests(
            f"The server holds {held:,} bytes of {self._noun} for your account, and has no room for"
            f" {size:,} more. {self._remedy}",
            retry_after=RETRY_AFTER,
            code=self._code,
        )


def key(owner: Owner | None) -> Owner | None:
    """The key of an owner in a budget: its account and mode."""
    # A Caller is a subclass of Owner with more fields, and never equal to an Owner.
    return owner and Owner(owner.account_id, owner.livemode)


bodies = Budget("request bodies", "Send fewer of them at a time.", "bodies_limit")
answers = Budget(
    "answers that your clients have not read", "Read or close those first.", "answers_limit"
)

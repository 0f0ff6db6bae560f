"""The budget of bytes that one API process holds for its clients: bodies that are arriving, and
answers that are not read.

Accounts share it by a dynamic threshold (Choudhury and Hahne), as the ports of a switch share its
buffers: an account may hold at most a quarter of the bytes that are free. One account alone gets a
fifth of the budget. Each account that holds its most leaves four fifths of what was free, so an
account that holds nothing is served beside them.

The event loop alone changes a budget. Threads may ask it.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from xalen_batch import memory
from xalen_batch.accounts.accounts import Owner
from xalen_batch.config import MiB, settings
from xalen_batch.errors import TooManyRequests, Unavailable

RETRY_AFTER = 1.0
# The part of the free bytes that one account may hold.
SHARE = 1 / 4
# Where as many bytes were held at a time, the process gives free memory back once it holds half of
# them.
TRIM_AFTER = 32 * MiB


class Budget:
    """Bytes held now, by account and mode. `noun` and `remedy` are words of its refusals."""

    def __init__(self, noun: str, remedy: str, code: str) -> None:
        self._noun = noun
        self._remedy = remedy
        self._code = code
        self._held: Counter[Owner | None] = Counter()
        self._total = 0
        self._peak = 0

    def held(self, owner: Owner | None) -> int:
        """Bytes that are held for an account and mode; None: for callers without a key."""
        return self._held[key(owner)]

    def take(self, owner: Owner | None, size: int) -> None:
        """Reserve bytes until they are given back.

        TooManyRequests, or Unavailable for one who holds none, where they do not fit.
        """
        self._refuse_unless_fits(owner, size)
        self.add(owner, size)

    def add(self, owner: Owner | None, size: int) -> None:
        """Count bytes that are there already, also over the threshold."""
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
        """`take`, and give back at the end."""
        self.take(owner, size)
        try:
            yield
        finally:
            self.give_back(owner, size)

    def refuse_if_over(self, owner: Owner) -> None:
        """TooManyRequests while an account holds more than its threshold."""
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
    """By what an owner is known here: its account and mode."""
    # A Caller is an Owner with more to it, and equal to none.
    return owner and Owner(owner.account_id, owner.livemode)


bodies = Budget("request bodies", "Send fewer of them at a time.", "bodies_limit")
answers = Budget(
    "answers that your clients have not read", "Read or close those first.", "answers_limit"
)

"""The states of batches for all event streams of this process, from one poller.

However many streams are open, one statement of each kind a second reads all of their batches. The
event loop thread calls everything here; a thread of the poller's own reads the database.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple
from uuid import UUID

from xalen_batch import db, log
from xalen_batch.accounts.accounts import Owner
from xalen_batch.api.http import budget
from xalen_batch.errors import TooManyRequests

logger = log.get(__name__)

# Streams of one process, in total and for one account.
MOST_STREAMS, MOST_OF_ACCOUNT = 500, 50
# Seconds between two polls: at least, and at least this multiple of the time that the last took.
EVERY, SHARE = 1.0, 10
# Seconds after a poll that found the database away.
PAUSE = 5.0
# Seconds after which a refused client may try again; it may poll meanwhile.
RETRY_AFTER = 30.0


class State(NamedTuple):
    """A batch as its owner sees it, as JSON. `end`: its status if it has ended, else None."""

    content: bytes
    end: str | None

    @property
    def id(self) -> str:
        """The same for the same content."""
        return hashlib.blake2b(self.content, digest_size=8).hexdigest()


class Subscription:
    """The last known state of a batch; `changed` is set when there is another one."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.changed = asyncio.Event()

    def tell(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self.changed.set()


class Feed:
    """Polls the batches that somebody follows, and tells the subscriptions of each.

    `read` returns the states of batches by their ids; it is called on a thread.
    """

    def __init__(self, read: Callable[[Collection[UUID]], Mapping[UUID, State]]) -> None:
        self._read = read
        self._following: dict[UUID, set[Subscription]] = {}
        self._of_account = Counter[Owner | None]()
        self._polling: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="events")

    @contextmanager
    def following(
        self, batch_id: UUID, owner: Owner | None, state: State
    ) -> Iterator[Subscription]:
        """A subscription while the context lasts. TooManyRequests above a limit."""
        account = budget.key(owner)
        self._refuse_if_too_many(account)
        subscription = Subscription(state)
        self._following.setdefault(batch_id, set()).add(subscription)
        self._of_account[account] += 1
        if self._polling is None or self._polling.done():
            self._polling = asyncio.get_running_loop().create_task(self._poll())
        try:
            yield subscription
        finally:
            self._of_account[account] -= 1
            if not self._of_account[account]:
                del self._of_account[account]
            self._following[batch_id].discard(subscription)
            if not self._following[batch_id]:
                del self._following[batch_id]

    def _refuse_if_too_many(self, account: Owner | None) -> None:
        if self._of_account[account] >= MOST_OF_ACCOUNT:
            who = f"{MOST_OF_ACCOUNT} event streams of your account"
        elif self._of_account.total() >= MOST_STREAMS:
            who = f"{MOST_STREAMS} event streams"
        else:
            return
        raise TooManyRequests(
            f"The server has {who} open, the most at a time. Close one, or read the batch from time"
            " to time with GET.",
            retry_after=RETRY_AFTER,
            code="too_many_streams",
        )

    async def _poll(self) -> None:
        """Poll until nobody follows a batch."""
        loop = asyncio.get_running_loop()
        pause = EVERY
        while True:
            await asyncio.sleep(pause)
            if not self._following:
                return
            begun = loop.time()
            try:
                found = await loop.run_in_executor(self._thread, self._read, list(self._following))
            except db.UNAVAILABLE as error:
                logger.warning(db.trouble(error), during="events")
                pause = PAUSE
                continue
            pause = max(EVERY, SHARE * (loop.time() - begun))
            for batch_id, state in found.items():
                for subscription in self._following.get(batch_id, ()):
                    subscription.tell(state)

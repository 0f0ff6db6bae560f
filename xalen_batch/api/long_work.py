"""Limits the long requests that one API process runs at a time, in total and for each account.

Long are estimates, previews and tests of webhooks, for example.

Requests above a limit are refused, not queued: an account cannot take all places, and long requests
cannot take all threads of the API, of which each short request needs one.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from xalen_batch.accounts.accounts import Owner
from xalen_batch.config import settings
from xalen_batch.errors import TooManyRequests

# Seconds; about the duration of a long request.
RETRY_AFTER = 2.0

_lock = threading.Lock()
_at_work = Counter[UUID]()


@contextmanager
def admitted(owner: Owner) -> Iterator[None]:
    """Count a long request while the context lasts; TooManyRequests above a limit."""
    account = owner.account_id
    with _lock:
        _refuse_if_too_many(account)
        _at_work[account] += 1
    try:
        yield
    finally:
        with _lock:
            _at_work[account] -= 1
            if not _at_work[account]:
                del _at_work[account]


def _refuse_if_too_many(account: UUID) -> None:
    most, most_of_account = settings().long_requests, settings().long_requests_per_account
    if _at_work[account] >= most_of_account:
        who = (
            f"{most_of_account} requests of the account that take long (estimates, previews,"
            " searches for a line, changes of schedules, tests of webhooks)"
        )
    elif _at_work.total() >= most:
        who = f"{most} requests that take long"
    else:
        return
    raise TooManyRequests(
        f"The server is at work on {who}, the most at a time. Send this one again when"
        " `retry-after` is over.",
        retry_after=RETRY_AFTER,
        code="too_many_long_requests",
    )

"""The throttle: lets an account's requests per second pass, and remembers for the answer how many are left."""

import time
from contextvars import ContextVar

from sqlalchemy.orm import Session

from xalen_batch import quotas
from xalen_batch.accounts import Owner
from xalen_batch.api import allowances
from xalen_batch.api.allowances import Draw
from xalen_batch.errors import TooManyRequests
from xalen_batch.quotas import Quota

# How long a process goes by a limit that it has read.
KNOWN_FOR = 5.0
MOST_KNOWN = 10_000

_limits: dict[Owner, tuple[float, int | None]] = {}
# A holder for each request: what threads put into it is seen there, what they set themselves is not.
_draws: ContextVar[list[Draw] | None] = ContextVar("draws", default=None)


def admit(session: Session, owner: Owner) -> None:
    """Let a request of this account pass. TooManyRequests if it is one too many for this second."""
    limit = _limit(session, owner)
    if limit is None:
        return
    draw = allowances.draw(f"requests:{owner.account_id.hex}:{'live' if owner.livemode else 'test'}", limit)
    if (draws := _draws.get()) is not None:
        draws[:] = [draw]
    if draw.wait:
        raise TooManyRequests(
            f"The account's limit is {limit:,} requests per second. Send this one again when `retry-after` is over.", retry_after=draw.wait
        )


def begin() -> list[Draw]:
    """A holder for what is drawn for the request that begins now: none or one."""
    draws: list[Draw] = []
    _draws.set(draws)
    return draws


def current() -> Draw | None:
    """What was drawn for the request that is answered now. None: it has no limit."""
    return next(iter(_draws.get() or ()), None)


def _limit(session: Session, owner: Owner) -> int | None:
    key = Owner(owner.account_id, owner.livemode)
    until, limit = _limits.get(key, (0.0, None))
    now = time.monotonic()
    if now >= until:
        if len(_limits) >= MOST_KNOWN:
            _limits.clear()
        limit = quotas.limits(session, owner)[Quota.REQUESTS_PER_SECOND]
        _limits[key] = now + KNOWN_FOR, limit
    return limit

"""The throttle: an account's requests per second and changes per minute, each a token bucket;
remembers what is left for the answer.
"""

import time
from contextvars import ContextVar

from sqlalchemy.orm import Session

from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.accounts.quotas import Quota, QuotaLimits
from xalen_batch.errors import TooManyRequests
from xalen_batch.ratelimit import allowances
from xalen_batch.ratelimit.allowances import Draw

# How long a process goes by a limit that it has read.
KNOWN_FOR = 5.0
MOST_KNOWN = 10_000

MINUTE = 60.0

_limits: dict[Owner, tuple[float, QuotaLimits]] = {}
# A holder for each request: what threads put into it is seen there, what they set themselves is
# not.
_draws: ContextVar[list[Draw] | None] = ContextVar("draws", default=None)


def admit(session: Session, owner: Owner) -> None:
    """Let a request of this account pass. TooManyRequests if it is one too many for this second."""
    limit = _limits_of(session, owner)[Quota.REQUESTS_PER_SECOND]
    if limit is None:
        return
    draw = allowances.draw(_bucket("requests", owner), limit)
    if (draws := _draws.get()) is not None:
        draws[:] = [draw]
    if draw.wait:
        raise TooManyRequests(
            f"The account's limit is {limit:,} requests per second. Send this one again when"
            " `retry-after` is over.",
            retry_after=draw.wait,
        )


def admit_change(session: Session, owner: Owner) -> None:
    """Let a request pass that makes, changes or deletes something.

    TooManyRequests if it is one too many for this minute.
    """
    limit = _limits_of(session, owner)[Quota.CHANGES_PER_MINUTE]
    if limit is None:
        return
    draw = allowances.draw(_bucket("changes", owner), limit, MINUTE)
    if draw.wait:
        raise TooManyRequests(
            f"The account's limit is {limit:,} requests per minute that make, change or delete"
            " something. Send this one again when `retry-after` is over.",
            retry_after=draw.wait,
            code=f"{Quota.CHANGES_PER_MINUTE}_limit",
        )


def changes(session: Session, owner: Owner) -> Draw | None:
    """What is left of this minute's changes, without taking one. None: they have no limit."""
    limit = _limits_of(session, owner)[Quota.CHANGES_PER_MINUTE]
    return (
        None if limit is None else allowances.draw(_bucket("changes", owner), limit, MINUTE, cost=0)
    )


def begin() -> list[Draw]:
    """A holder for what is drawn for the request that begins now: none or one."""
    draws: list[Draw] = []
    _draws.set(draws)
    return draws


def current() -> Draw | None:
    """What was drawn for the request that is answered now. None: it has no limit."""
    return next(iter(_draws.get() or ()), None)


def _bucket(of: str, owner: Owner) -> str:
    return f"{of}:{owner.account_id.hex}:{'live' if owner.livemode else 'test'}"


def _limits_of(session: Session, owner: Owner) -> QuotaLimits:
    key = Owner(owner.account_id, owner.livemode)
    until, limits = _limits.get(key, (0.0, {}))
    now = time.monotonic()
    if now >= until:
        if len(_limits) >= MOST_KNOWN:
            _limits.clear()
        limits = quotas.limits(session, owner)
        _limits[key] = now + KNOWN_FOR, limits
    return limits

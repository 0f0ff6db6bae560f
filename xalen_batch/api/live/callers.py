"""The callers of live calls, with their terms, known for a second each.

A live call reads no store before it is sent: a look-up of the key and the prices would take longer
than all else that this process does for it. So a revoked key and a new price take effect within
KNOWN_FOR seconds.
"""

import asyncio
import time
from typing import NamedTuple

from fastapi.security.utils import get_authorization_scheme_param
from starlette.requests import Request

from xalen_batch import db
from xalen_batch.accounts import secrets
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api import deps
from xalen_batch.batches import batches
from xalen_batch.billing.terms import Terms
from xalen_batch.ratelimit import account

KNOWN_FOR = 1.0
MOST_KNOWN = 10_000


class Known(NamedTuple):
    """A caller and the terms of all models, as read at a time before `until` (monotonic)."""

    caller: Caller
    terms: Terms
    until: float


_known: dict[bytes, Known] = {}


async def admit(request: Request) -> Known:
    """The caller of a live call, counted in its rate limit. Event loop thread only.

    Raises Unauthenticated, Forbidden and TooManyRequests.
    """
    kind, secret = get_authorization_scheme_param(request.headers.get("authorization"))
    key = secrets.digest(secret)
    known = _known.get(key)
    now = time.monotonic()
    if known is not None and now < known.until and account.admit_known(known.caller):
        deps.admitted(request, known.caller)
        return known
    found = await asyncio.to_thread(_look_up, request, secret if kind.lower() == "bearer" else "")
    known = Known(*found, now + KNOWN_FOR)
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[key] = known
    return known


def _look_up(request: Request, secret: str) -> tuple[Caller, Terms]:
    caller = deps.authenticate_briefly(request, secret, Scope.SUBMIT)
    with db.reading() as session:
        return caller, batches.offered(session, caller)

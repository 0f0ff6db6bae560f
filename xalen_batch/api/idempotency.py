"""`Idempotency-Key`: a request that is sent twice creates one object and gets one answer."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Caller
from xalen_batch.accounts.quotas import Quota
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import IdempotencyKey

MAX_KEY = 255


@dataclass(frozen=True, slots=True)
class IdempotentAnswer:
    """The body of an answer. `is_replay`: nothing was created, the body is a stored one."""

    body: bytes
    is_replay: bool


def once(
    session: Session,
    caller: Caller,
    key: str | None,
    *,
    route: str,
    fingerprint: bytes,
    create: Callable[[], bytes],
) -> IdempotentAnswer:
    """Call `create` and store its answer under this key, or replay the answer stored under it.

    The key is inserted in the transaction that creates. A concurrent request with the same key
    waits for that row: after a commit it replays the answer, after a rollback it creates.
    Raises InvalidRequest (`idempotency_key_reused`) if the key was used for another request, and
    TooManyRequests if the account has too many stored keys.
    """
    if key is None:
        return IdempotentAnswer(create(), is_replay=False)
    _check(key)
    while not _claim(session, caller, key, route, fingerprint):
        known = session.scalars(select(IdempotencyKey).where(*_mine(caller, key))).one_or_none()
        if known is not None:
            return _replay(known, route, fingerprint)
        # The sweep deleted the conflicting row after the insert failed: insert again.
    # Checked without the account's lock, which is taken later: concurrent requests may exceed the
    # limit by their number.
    if excess := quotas.excess(session, caller, {Quota.IDEMPOTENCY_KEYS: 1}):
        raise excess.refusal()
    body = create()
    session.execute(
        update(IdempotencyKey)
        .where(*_mine(caller, key))
        .values(answer=body)
        .execution_options(synchronize_session=False)
    )
    return IdempotentAnswer(body, is_replay=False)


def kept(
    session: Session, caller: Caller, key: str | None, *, route: str, fingerprint: bytes
) -> IdempotentAnswer | None:
    """The answer stored under this key, or None. Lets a route skip slow work before `once`."""
    if key is None:
        return None
    _check(key)
    known = session.scalars(select(IdempotencyKey).where(*_mine(caller, key))).one_or_none()
    return None if known is None else _replay(known, route, fingerprint)


def _claim(session: Session, caller: Caller, key: str, route: str, fingerprint: bytes) -> bool:
    """Insert the key; False if it exists. Waits for a concurrent transaction that inserts it."""
    row = {"account_id": caller.account_id, "livemode": caller.livemode, "key": key}
    claimed = session.execute(
        insert(IdempotencyKey)
        .values(**row, route=route, fingerprint=fingerprint, answer=b"")
        .on_conflict_do_nothing()
        .returning(IdempotencyKey.key)
    )
    return claimed.one_or_none() is not None


def _check(key: str) -> None:
    if not 0 < len(key) <= MAX_KEY or not key.isprintable():
        raise InvalidRequest(
            f"Idempotency-Key must be 1 to {MAX_KEY} printable characters. A UUID is a good one.",
            param="Idempotency-Key",
        )


def _mine(caller: Caller, key: str) -> list[ColumnElement[bool]]:
    return [
        IdempotencyKey.account_id == caller.account_id,
        IdempotencyKey.livemode == caller.livemode,
        IdempotencyKey.key == key,
    ]


def _replay(known: IdempotencyKey, route: str, fingerprint: bytes) -> IdempotentAnswer:
    if (known.route, known.fingerprint) != (route, fingerprint):
        raise InvalidRequest(
            f"Idempotency-Key {known.key!r} was used for another request. Send a new key with each"
            " new request.",
            param="Idempotency-Key",
            code="idempotency_key_reused",
        )
    return IdempotentAnswer(known.answer, is_replay=True)

"""`Idempotency-Key`: the same request sent twice creates one object and gets one answer."""

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
class Answer:
    """The body of an answer. `is_replay`: nothing was created now, the body is an earlier one."""

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
) -> Answer:
    """Create something and answer with it, or replay the answer kept for this key.

    The key is claimed in the transaction that creates: of two requests at once the second waits
    here until the first has committed, and then replays it, or has failed, and then creates.
    Raises InvalidRequest (`idempotency_key_reused`) if the key was used for another request, and
    TooManyRequests if the account has too many keys that are kept.
    """
    if key is None:
        return Answer(create(), is_replay=False)
    _check(key)
    while not _claim(session, caller, key, route, fingerprint):
        known = session.scalars(select(IdempotencyKey).where(*_mine(caller, key))).one_or_none()
        if known is not None:
            return _replay(known, route, fingerprint)
        # The sweep has deleted it since it was in the way: claim it again.
    # Without the account's lock, which comes later: requests under way at once may pass the limit
    # by their number.
    if excess := quotas.excess(session, caller, {Quota.IDEMPOTENCY_KEYS: 1}):
        raise excess.refusal()
    body = create()
    session.execute(
        update(IdempotencyKey)
        .where(*_mine(caller, key))
        .values(answer=body)
        .execution_options(synchronize_session=False)
    )
    return Answer(body, is_replay=False)


def kept(
    session: Session, caller: Caller, key: str | None, *, route: str, fingerprint: bytes
) -> Answer | None:
    """The answer kept for this key, if there is one: to ask before what takes long and has to be
    done before `once`.
    """
    if key is None:
        return None
    _check(key)
    known = session.scalars(select(IdempotencyKey).where(*_mine(caller, key))).one_or_none()
    return None if known is None else _replay(known, route, fingerprint)


def _claim(session: Session, caller: Caller, key: str, route: str, fingerprint: bytes) -> bool:
    """Whether the key is this transaction's now. Waits for another transaction that claims it."""
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


def _replay(known: IdempotencyKey, route: str, fingerprint: bytes) -> Answer:
    if (known.route, known.fingerprint) != (route, fingerprint):
        raise InvalidRequest(
            f"Idempotency-Key {known.key!r} was used for another request. Send a new key with each"
            " new request.",
            param="Idempotency-Key",
            code="idempotency_key_reused",
        )
    return Answer(known.answer, is_replay=True)

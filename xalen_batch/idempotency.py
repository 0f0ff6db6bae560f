"""`Idempotency-Key`: the same request sent twice creates one object and gets one answer."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from xalen_batch.accounts import Caller
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import IdempotencyKey

MAX_KEY = 255


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of an answer. `is_replay`: nothing was created now, the body is an earlier one."""

    body: bytes
    is_replay: bool


def once(session: Session, caller: Caller, key: str | None, *, route: str, fingerprint: bytes, create: Callable[[], bytes]) -> Answer:
    """Create something and answer with it, or replay the answer kept for this key.

    The key is claimed in the transaction that creates: of two requests at once the second waits
    here until the first has committed, and then replays it, or has failed, and then creates.
    Raises InvalidRequest (`idempotency_key_reused`) if the key was used for another request.
    """
    if key is None:
        return Answer(create(), is_replay=False)
    _check(key)
    row = {"account_id": caller.account_id, "livemode": caller.livemode, "key": key}
    claimed = session.execute(
        insert(IdempotencyKey)
        .values(**row, route=route, fingerprint=fingerprint, answer=b"")
        .on_conflict_do_nothing()
        .returning(IdempotencyKey.key)
    ).one_or_none()
    if claimed is not None:
        body = create()
        session.execute(update(IdempotencyKey).where(*_mine(caller, key)).values(answer=body).execution_options(synchronize_session=False))
        return Answer(body, is_replay=False)
    return _replay(session.scalars(select(IdempotencyKey).where(*_mine(caller, key))).one(), route, fingerprint)


def kept(session: Session, caller: Caller, key: str | None, *, route: str, fingerprint: bytes) -> Answer | None:
    """The answer kept for this key, if there is one: to ask before what takes long and has to be done before `once`."""
    if key is None:
        return None
    _check(key)
    known = session.scalars(select(IdempotencyKey).where(*_mine(caller, key))).one_or_none()
    return None if known is None else _replay(known, route, fingerprint)


def _check(key: str) -> None:
    if not 0 < len(key) <= MAX_KEY or not key.isprintable():
        raise InvalidRequest(f"Idempotency-Key must be 1 to {MAX_KEY} printable characters. A UUID is a good one.", param="Idempotency-Key")


def _mine(caller: Caller, key: str) -> list[ColumnElement[bool]]:
    return [IdempotencyKey.account_id == caller.account_id, IdempotencyKey.livemode == caller.livemode, IdempotencyKey.key == key]


def _replay(known: IdempotencyKey, route: str, fingerprint: bytes) -> Answer:
    if (known.route, known.fingerprint) != (route, fingerprint):
        raise InvalidRequest(
            f"Idempotency-Key {known.key!r} was used for another request. Send a new key with each new request.",
            param="Idempotency-Key",
            code="idempotency_key_reused",
        )
    return Answer(known.answer, is_replay=True)

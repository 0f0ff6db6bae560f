"""Accounts, their keys, and who a key stands for."""

import hashlib
import secrets
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from sqlalchemy import bindparam, func, or_, select, update
from sqlalchemy.orm import Session

from xalen_batch import ids
from xalen_batch.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated
from xalen_batch.models import Account, ApiKey

BASE62 = string.digits + string.ascii_letters
SECRET_DIGITS = 32
SHOWN_DIGITS = 4
LAST_USED_RESOLUTION = timedelta(minutes=1)


class Scope(StrEnum):
    """What a key may do."""

    SUBMIT = "submit"  # create and delete files, create and cancel batches
    READ = "read"  # list and get files, batches and models, download results
    BILLING = "billing"  # invoices and statements


@dataclass(frozen=True, slots=True)
class Owner:
    """One account in one mode. Every query is scoped by both."""

    account_id: UUID
    livemode: bool


@dataclass(frozen=True, slots=True)
class Caller(Owner):
    """Who asks, and what their key may do."""

    scopes: frozenset[str]
    key_id: UUID

    def require(self, scope: Scope) -> None:
        """Raise Forbidden unless the key has the scope."""
        if scope not in self.scopes:
            raise Forbidden(f"This key lacks the scope `{scope}`. Use a key that has it, or create one: `xalen-batch keys create`.")


def create(session: Session, name: str) -> Account:
    """A new account. InvalidRequest if the name is taken."""
    if session.scalar(select(Account.id).where(Account.name == name)) is not None:
        raise InvalidRequest(f"An account named {name!r} exists already. Choose another name.", param="name")
    account = Account(id=ids.new(), name=name)
    session.add(account)
    session.flush()
    return account


def create_key(
    session: Session,
    account: Account,
    *,
    livemode: bool,
    name: str,
    scopes: Iterable[str] = tuple(Scope),
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its secret, which is kept nowhere and can be shown only now."""
    wanted = list(dict.fromkeys(scopes))
    if unknown := set(wanted) - set(Scope):
        raise InvalidRequest(f"scopes: {', '.join(sorted(unknown))} is no scope. Choose among {', '.join(Scope)}.", param="scopes")
    prefix = "xln_live_" if livemode else "xln_test_"
    secret = prefix + "".join(secrets.choice(BASE62) for _ in range(SECRET_DIGITS))
    key = ApiKey(
        id=ids.new(),
        account_id=account.id,
        livemode=livemode,
        name=name,
        prefix=secret[: len(prefix) + SHOWN_DIGITS],
        hash=_hash(secret),
        scopes=wanted,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, secret


# Made once: each request asks this.
_BY_HASH = select(
    ApiKey.id,
    ApiKey.account_id,
    ApiKey.livemode,
    ApiKey.scopes,
    ApiKey.revoked_at,
    ApiKey.expires_at <= func.now(),
    or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - LAST_USED_RESOLUTION),
).where(ApiKey.hash == bindparam("hash"))


def authenticate(session: Session, secret: str) -> Caller:
    """Who a key stands for. Unauthenticated if nobody, or if it was revoked or has expired.

    Found by its hash, so that comparing takes no time that tells anything about the key.
    """
    row = session.execute(_BY_HASH, {"hash": _hash(secret)}).one_or_none()
    if row is None:
        raise Unauthenticated("Incorrect API key provided. Send a key of this server as `Authorization: Bearer xln_test_…`.")
    key_id, account_id, livemode, scopes, revoked_at, is_expired, is_unstamped = row
    if revoked_at is not None or is_expired:
        raise Unauthenticated(f"This API key {'was revoked' if revoked_at else 'has expired'}. Use another one.")
    if is_unstamped:
        _stamp(session, key_id)
    return Caller(account_id, livemode, frozenset(scopes), key_id)


def revoke_key(session: Session, key_id: UUID) -> ApiKey:
    """The key is refused from now on. Revoking again changes nothing."""
    key = session.get(ApiKey, key_id, with_for_update=True)
    if key is None:
        raise NotFound(f"There is no key {ids.render('key', key_id)}.")
    if key.revoked_at is None:
        key.revoked_at = session.scalar(select(func.now()))
        session.flush()
    return key


def list_keys(session: Session) -> Sequence[ApiKey]:
    """Every key, the revoked ones too, in the order of creation."""
    return session.scalars(select(ApiKey).order_by(ApiKey.id)).all()


def _stamp(session: Session, key_id: UUID) -> None:
    # Skips a row that another request is stamping: nobody waits for a timestamp.
    free = select(ApiKey.id).where(ApiKey.id == key_id).with_for_update(skip_locked=True).scalar_subquery()
    session.execute(update(ApiKey).where(ApiKey.id == free).values(last_used_at=func.now()).execution_options(synchronize_session=False))


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()

"""API keys: create, list, rotate and revoke. The secret is shown once, and stored as its hash."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from xalen_batch import db, ids, paging
from xalen_batch.accounts import quotas, secrets
from xalen_batch.accounts.accounts import ORDINARY, Owner, Scope
from xalen_batch.accounts.quotas import Quota
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest, NotFound
from xalen_batch.models import ApiKey
from xalen_batch.paging import Page

# Time for which a rotated key is valid beside its successor.
OVERLAP = timedelta(hours=24)
LONGEST_OVERLAP = timedelta(days=30)


def create(
    session: Session,
    owner: Owner,
    *,
    name: str,
    scopes: Iterable[str] = ORDINARY,
    expires_at: datetime | None = None,
    rotated_from: UUID | None = None,
) -> tuple[ApiKey, str]:
    """Create a key. Returns it with its secret, which is not stored.

    Raises InvalidRequest for unknown or missing scopes, and TooManyRequests if the account has its
    quota of valid keys.
    """
    wanted = list(dict.fromkeys(scopes))
    unknown = set(wanted) - set(Scope)
    if unknown:
        raise InvalidRequest(
            f"scopes: {', '.join(sorted(unknown))} is no scope. Choose among {', '.join(Scope)}.",
            param="scopes",
        )
    if not wanted:
        raise InvalidRequest(
            f"scopes: a key needs at least one. Choose among {', '.join(Scope)}.", param="scopes"
        )
    quotas.admit(session, owner, {Quota.API_KEYS: 1})
    secret = secrets.new(owner.livemode)
    key = ApiKey(
        id=ids.new(),
        account_id=owner.account_id,
        livemode=owner.livemode,
        name=name,
        prefix=secrets.shown(secret),
        hash=secrets.digest(secret),
        scopes=wanted,
        expires_at=expires_at,
        rotated_from=rotated_from,
    )
    session.add(key)
    session.flush()
    return key, secret


def check_overlap(overlap: timedelta) -> None:
    """Raise InvalidRequest for an overlap that is negative or longer than LONGEST_OVERLAP."""
    if not timedelta() <= overlap <= LONGEST_OVERLAP:
        raise InvalidRequest(
            f"overlap: it must be between 0 and {LONGEST_OVERLAP.days} days.",
            param="overlap_seconds",
        )


def rotate(session: Session, key: ApiKey, overlap: timedelta = OVERLAP) -> tuple[ApiKey, str]:
    """Create the successor of a locked key. Returns it with its secret.

    The successor has the account, mode, name, scopes and lifetime of the old key, which expires
    after the overlap. Raises InvalidRequest for a key that is revoked, expired or already rotated.
    """
    check_overlap(overlap)
    successor = session.scalar(select(ApiKey.id).where(ApiKey.rotated_from == key.id))
    if successor is not None:
        raise InvalidRequest(
            f"Key {ids.render('key', key.id)} was rotated already: {ids.render('key', successor)}"
            " takes its place. Rotate that one, or revoke this one.",
            param="key_id",
        )
    now = db.now(session)
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        state = "revoked" if key.revoked_at else "expired"
        raise InvalidRequest(
            f"Key {ids.render('key', key.id)} is {state}: it cannot be rotated. Make a new one.",
            param="key_id",
        )
    expires_at = None if key.expires_at is None else now + (key.expires_at - key.created_at)
    owner = Owner(key.account_id, key.livemode)
    key.expires_at = now + overlap if key.expires_at is None else min(key.expires_at, now + overlap)
    # Flushed before `create` counts the valid keys: without an overlap the old key is none of them.
    session.flush()
    return create(
        session, owner, name=key.name, scopes=key.scopes, expires_at=expires_at, rotated_from=key.id
    )


def revoke(session: Session, key: ApiKey) -> None:
    """Refuse a locked key from now on. Idempotent."""
    if key.revoked_at is None:
        key.revoked_at = db.now(session)
        session.flush()


def lock(session: Session, public_id: str, owner: Owner | None = None) -> ApiKey:
    """Lock and return a key until this transaction ends; with an owner, only a key of theirs.

    Raises NotFound.
    """
    id = ids.parse("key", public_id)
    rows = select(ApiKey) if owner is None else _visible(owner)
    key = None
    if id is not None:
        key = session.scalars(rows.where(ApiKey.id == id).with_for_update()).one_or_none()
    if key is None:
        raise NotFound(f"No such API key: {public_id[:QUOTED_CHARS]}", param="key_id")
    return key


def page(session: Session, owner: Owner, *, limit: int, after: str | None) -> Page[ApiKey]:
    """A page of the owner's valid keys, the newest first."""
    usable = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())
    rows = _visible(owner).where(ApiKey.revoked_at.is_(None), usable)
    return paging.page(session, rows, ApiKey.id, "key", limit=limit, order="desc", after=after)


def every(session: Session) -> Sequence[ApiKey]:
    """All keys of all accounts, also revoked and expired ones, in the order of creation."""
    return session.scalars(select(ApiKey).order_by(ApiKey.id)).all()


def _visible(owner: Owner) -> Select[ApiKey]:
    return select(ApiKey).where(
        ApiKey.account_id == owner.account_id, ApiKey.livemode == owner.livemode
    )

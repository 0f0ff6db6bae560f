"""Sessions of the console: a random token in a browser's cookie stands for an API key.

A session has the rights of its key at each request: it ends with the key. Tokens are stored as
their SHA-256, as keys are. A link that signs in once is a token too, which `redeem` deletes.
"""

import secrets
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.orm import Session, aliased

from xalen_batch.accounts import accounts
from xalen_batch.accounts.accounts import Caller
from xalen_batch.accounts.secrets import digest
from xalen_batch.errors import Unauthenticated
from xalen_batch.models import Account, ApiKey, ConsoleToken

SESSION_LIFE = timedelta(hours=12)
LINK_LIFE = timedelta(minutes=15)
# Tokens of one key; the oldest makes way.
MOST_OF_KEY = 20
# Expired tokens that a new one deletes at most.
AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Visitor:
    """The caller of a session, with the names that pages show.

    `csrf`: the token that each of its forms has to send back.
    """

    caller: Caller
    key_name: str
    key_prefix: str
    account: str
    csrf: str


def open(session: Session, caller: Caller) -> str:
    """A new session of the caller's key; its token, which is not stored."""
    return _store(session, caller, SESSION_LIFE, is_link=False)


def link(session: Session, caller: Caller) -> str:
    """The token of a link that opens one session of the caller's key within LINK_LIFE."""
    return _store(session, caller, LINK_LIFE, is_link=True)


def redeem(session: Session, token: str) -> str:
    """The token of a new session for that of a link, which is deleted. Raises Unauthenticated."""
    key_id = session.scalar(
        delete(ConsoleToken)
        .where(
            ConsoleToken.hash == digest(token),
            ConsoleToken.is_link,
            ConsoleToken.expires_at > func.now(),
        )
        .returning(ConsoleToken.key_id)
    )
    if key_id is None:
        raise Unauthenticated(
            "This link was used already or is older than 15 minutes. Sign in with a key."
        )
    row = session.execute(select(*accounts.COLUMNS).where(ApiKey.id == key_id)).one()
    return open(session, accounts.caller_of(session, row))


# An alias: one of the columns is a subquery of the accounts.
_NAMED = aliased(Account)
_OF_TOKEN = (
    select(*accounts.COLUMNS, ApiKey.name, ApiKey.prefix, _NAMED.name)
    .join(_NAMED, _NAMED.id == ApiKey.account_id)
    .join(ConsoleToken, ConsoleToken.key_id == ApiKey.id)
    .where(
        ConsoleToken.hash == bindparam("hash"),
        ConsoleToken.is_link.is_(False),
        ConsoleToken.expires_at > func.now(),
    )
)


def authenticate(session: Session, token: str) -> Visitor:
    """The visitor of a session.

    Raises Unauthenticated if it has ended, or its key is revoked or expired; Forbidden if the
    account is disabled.
    """
    row = session.execute(_OF_TOKEN, {"hash": digest(token)}).one_or_none()
    if row is None:
        raise Unauthenticated("The session has ended. Sign in again.")
    *columns, key_name, key_prefix, account = row
    return Visitor(
        accounts.caller_of(session, columns), key_name, key_prefix, account, _csrf(token)
    )


def close(session: Session, token: str) -> None:
    """End a session. Idempotent."""
    session.execute(delete(ConsoleToken).where(ConsoleToken.hash == digest(token)))


def _csrf(token: str) -> str:
    """A token that only pages of the session can know: it is derived from the HttpOnly cookie."""
    return digest(f"csrf {token}").hex()


def _store(session: Session, caller: Caller, life: timedelta, *, is_link: bool) -> str:
    _make_room(session, caller)
    token = secrets.token_urlsafe(32)
    session.add(
        ConsoleToken(
            hash=digest(token),
            is_link=is_link,
            key_id=caller.key_id,
            account_id=caller.account_id,
            livemode=caller.livemode,
            expires_at=func.now() + life,
        )
    )
    session.flush()
    return token


def _make_room(session: Session, caller: Caller) -> None:
    """Delete some expired tokens, and those of the key beyond the newest."""
    expired = (
        select(ConsoleToken.hash)
        .where(ConsoleToken.expires_at <= func.now())
        .order_by(ConsoleToken.expires_at)
        .limit(AT_ONCE)
    )
    surplus = (
        select(ConsoleToken.hash)
        .where(ConsoleToken.key_id == caller.key_id)
        .order_by(ConsoleToken.created_at.desc())
        .offset(MOST_OF_KEY - 1)
    )
    for hashes in (expired, surplus):
        session.execute(
            delete(ConsoleToken)
            .where(ConsoleToken.hash.in_(hashes.with_for_update(skip_locked=True)))
            .execution_options(synchronize_session=False)
        )

"""Accounts, and the authentication of API keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Text, bindparam, cast, func, or_, select, update
from sqlalchemy.orm import Session

from xalen_batch import db, ids
from xalen_batch.accounts import audit, secrets
from xalen_batch.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated
from xalen_batch.models import Account, ApiKey

# `last_used_at` is written at most once in this time.
LAST_USED_RESOLUTION = timedelta(minutes=1)


class Scope(StrEnum):
    """A permission of a key."""

    SUBMIT = "submit"  # create and delete files, create and cancel batches
    READ = "read"  # list and get files, batches and models, download results
    BILLING = "billing"  # invoices and statements
    ADMIN = "admin"  # list, make, rotate and revoke the keys of its account and mode


# The default scopes of a key: all but ADMIN.
ORDINARY = tuple(scope for scope in Scope if scope is not Scope.ADMIN)


@dataclass(frozen=True, slots=True)
class Owner:
    """One account in one mode. Every query is scoped by both."""

    account_id: UUID
    livemode: bool


@dataclass(frozen=True, slots=True)
class Caller(Owner):
    """The owner that a request acts for, with the key that it was sent with."""

    scopes: frozenset[str]
    key_id: UUID

    @property
    def actor(self) -> str:
        """The caller's name in the audit log: the public id of the key."""
        return ids.render("key", self.key_id)

    def require(self, scope: Scope) -> None:
        """Raise Forbidden unless the key has the scope."""
        if scope not in self.scopes:
            raise Forbidden(
                f"This key lacks the scope `{scope}`. Use a key that has it, or create one:"
                " `xalen-batch keys create`."
            )


def create(session: Session, name: str) -> Account:
    """Create an account. Raises InvalidRequest if the name is taken."""
    _refuse_taken(session, name)
    account = Account(id=ids.new(), name=name)
    session.add(account)
    session.flush()
    return account


def every(session: Session) -> Sequence[Account]:
    """All accounts by name."""
    return session.scalars(select(Account).order_by(Account.name)).all()


def named(session: Session, name: str) -> Account:
    """The account of this name. Raises NotFound, which suggests the closest name."""
    account = session.scalars(select(Account).where(Account.name == name)).one_or_none()
    if account is None:
        close = get_close_matches(name, session.scalars(select(Account.name)).all(), n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise NotFound(
            f"There is no account named {name!r}.{meant} `xalen-batch accounts list` shows all.",
            param="account",
        )
    return account


def rename(session: Session, account: Account, name: str) -> None:
    """Rename an account, which keeps its keys, batches and invoices.

    Raises InvalidRequest if the name is taken.
    """
    _refuse_taken(session, name)
    account.name = name
    session.flush()


def weigh(session: Session, account: Account, weight: int) -> None:
    """Set the account's share of busy backends.

    With weight 4 it is served four lines for each line of an account with weight 1.
    """
    account.weight = weight
    session.flush()


def disable(session: Session, account: Account) -> None:
    """Refuse the account's keys and start no run of its schedules. Idempotent.

    Batches that exist go on.
    """
    if account.disabled_at is None:
        account.disabled_at = db.now(session)
        session.flush()


def enable(session: Session, account: Account) -> None:
    """Undo `disable`. The misfire policy of each schedule applies to the fires that were missed."""
    account.disabled_at = None
    session.flush()


def is_enabled(session: Session, account_id: UUID) -> bool:
    return session.scalar(select(Account.disabled_at).where(Account.id == account_id)) is None


def _refuse_taken(session: Session, name: str) -> None:
    if session.scalar(select(Account.id).where(Account.name == name)) is not None:
        raise InvalidRequest(
            f"An account named {name!r} exists already. Choose another name.", param="name"
        )


def may_simulate(session: Session, account_id: UUID) -> bool:
    """Whether live batches of the account may use models that the catalog calls simulated."""
    return bool(session.scalar(select(Account.simulated_live).where(Account.id == account_id)))


def let_simulate(session: Session, account_id: UUID, is_allowed: bool) -> None:
    """Set `may_simulate`. Batches that exist keep their backends."""
    session.execute(
        update(Account).where(Account.id == account_id).values(simulated_live=is_allowed)
    )


# What `caller_of` reads. The last but one makes the key the actor of this transaction in the audit
# log, without a second round trip.
COLUMNS = (
    ApiKey.id,
    ApiKey.account_id,
    ApiKey.livemode,
    ApiKey.scopes,
    ApiKey.revoked_at,
    ApiKey.expires_at <= func.now(),
    or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - LAST_USED_RESOLUTION),
    func.set_config(
        audit.SETTING, func.concat("key_", func.replace(cast(ApiKey.id, Text), "-", "")), True
    ),
    select(Account.disabled_at.is_not(None))
    .where(Account.id == ApiKey.account_id)
    .scalar_subquery(),
)
# Built once, since every request runs it.
_BY_HASH = select(*COLUMNS).where(ApiKey.hash == bindparam("hash"))


def authenticate(session: Session, secret: str) -> Caller:
    """The caller that a key belongs to.

    Raises Unauthenticated for a key that is unknown, revoked or expired, and Forbidden if its
    account is disabled. The look-up is by the SHA-256 of the key, so its time does not reveal how
    many characters are right (no timing attack). A text that cannot be a key, by its form or
    checksum, is refused without a query.
    """
    if not secrets.is_possible(secret):
        if secret.startswith(tuple(secrets.PREFIXES.values())):
            raise Unauthenticated(
                "Incorrect API key provided: it is mistyped or cut short, by its checksum. Copy it"
                " once more, whole."
            )
        raise Unauthenticated(
            "Incorrect API key provided. Send a key of this server as `Authorization: Bearer"
            " xln_test_…`."
        )
    row = session.execute(_BY_HASH, {"hash": secrets.digest(secret)}).one_or_none()
    if row is None:
        raise Unauthenticated(
            "Incorrect API key provided: this server has no such key. Use another one, or create"
            " one: `xalen-batch keys create`."
        )
    return caller_of(session, row)


def caller_of(session: Session, row: Sequence[Any]) -> Caller:
    """The caller of a row of COLUMNS; notes that the key was used.

    Raises Unauthenticated for a key that is revoked or expired, and Forbidden if its account is
    disabled.
    """
    key_id, account_id, livemode, scopes, revoked_at, is_expired, is_unstamped, _, is_disabled = row
    if revoked_at is not None or is_expired:
        raise Unauthenticated(
            f"This API key {'was revoked' if revoked_at else 'has expired'}. Use another one."
        )
    if is_disabled:
        raise Forbidden(
            "The account of this API key is disabled. Ask whoever runs the server.",
            code="account_disabled",
        )
    if is_unstamped:
        _stamp(session, key_id)
    return Caller(account_id, livemode, frozenset(scopes), key_id)


def _stamp(session: Session, key_id: UUID) -> None:
    # SKIP LOCKED: a request does not wait for another that writes the same timestamp.
    free = (
        select(ApiKey.id)
        .where(ApiKey.id == key_id)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    session.execute(
        update(ApiKey)
        .where(ApiKey.id == free)
        .values(last_used_at=func.now())
        .execution_options(synchronize_session=False)
    )

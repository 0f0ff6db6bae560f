"""The owner and the scopes of a key."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, update
from sqlalchemy.orm import Session

from tests import factories
from xalen_batch import db
from xalen_batch.accounts import accounts, keys, secrets
from xalen_batch.accounts.accounts import ORDINARY, Caller, Owner, Scope
from xalen_batch.errors import Forbidden, InvalidRequest, Unauthenticated
from xalen_batch.models import ApiKey


@pytest.mark.parametrize("livemode", [False, True])
def test_a_key_stands_for_its_account_in_its_mode(session: Session, livemode: bool) -> None:
    key, secret = keys.create(session, Owner(factories.account(session).id, livemode), name="ci")
    assert accounts.authenticate(session, secret) == Caller(
        key.account_id, livemode, frozenset({"submit", "read", "billing"}), key.id
    )


def test_a_key_from_before_there_was_a_checksum_stays_valid(session: Session) -> None:
    key, _ = keys.create(session, Owner(factories.account(session).id, False), name="old")
    old = "xln_test_" + "a" * 32
    key.hash = secrets.digest(old)
    session.flush()
    assert accounts.authenticate(session, old).key_id == key.id


def test_a_key_that_differs_in_its_last_random_digit_is_unknown(session: Session) -> None:
    secret = factories.key(session)
    digits = secret[9:41]
    other = digits[:-1] + ("a" if digits[-1] != "a" else "b")
    with pytest.raises(Unauthenticated, match="no such key"):
        accounts.authenticate(session, secret[:9] + other + secrets.checksum(other))


def test_a_revoked_key_and_an_expired_one_are_refused(session: Session) -> None:
    owner = Owner(factories.account(session).id, False)
    key, secret = keys.create(session, owner, name="old")
    keys.revoke(session, key)
    with pytest.raises(Unauthenticated, match="revoked"):
        accounts.authenticate(session, secret)
    _, expired = keys.create(
        session, owner, name="short", expires_at=datetime.now(UTC) - timedelta(seconds=1)
    )
    with pytest.raises(Unauthenticated, match="expired"):
        accounts.authenticate(session, expired)


@pytest.mark.parametrize("secret", ["", "xln_test_", "sk-1", "\0", "é\ud800", "x" * 100_000])
def test_a_key_that_is_none_is_refused(session: Session, secret: str) -> None:
    with pytest.raises(Unauthenticated):
        accounts.authenticate(session, secret)


def test_last_use_is_written_at_most_once_a_minute(database: str) -> None:
    def use() -> datetime:
        with db.transaction() as session:
            accounts.authenticate(session, secret)
        with db.transaction() as session:
            used = keys.every(session)[0].last_used_at
        assert used is not None
        return used

    with db.transaction() as session:
        secret = factories.key(session)
    first = use()
    assert use() == first
    with db.transaction() as session:
        session.execute(update(ApiKey).values(last_used_at=func.now() - timedelta(seconds=61)))
    assert use() > first


def test_a_request_does_not_wait_for_another_ones_last_use(database: str) -> None:
    with db.transaction() as session:
        secret = factories.key(session)
    with db.transaction() as one, db.transaction() as other:
        assert accounts.authenticate(one, secret) == accounts.authenticate(other, secret)


def test_a_name_is_one_accounts(session: Session) -> None:
    factories.account(session, "acme")
    with pytest.raises(InvalidRequest, match="exists already"):
        accounts.create(session, "acme")


def test_a_key_may_do_what_its_scopes_say(session: Session) -> None:
    reader = accounts.authenticate(session, factories.key(session, scopes=["read"]))
    reader.require(Scope.READ)
    with pytest.raises(Forbidden, match="`submit`"):
        reader.require(Scope.SUBMIT)


def test_a_key_makes_no_others_unless_it_is_said(session: Session) -> None:
    assert set(ORDINARY) == set(Scope) - {Scope.ADMIN}
    with pytest.raises(Forbidden, match="`admin`"):
        factories.caller(session).require(Scope.ADMIN)

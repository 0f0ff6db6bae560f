"""Keys: shown once, stored as a hash, refused once revoked or expired."""

import hashlib
import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, update
from sqlalchemy.orm import Session

from tests import factories
from xalen_batch import accounts, db, ids
from xalen_batch.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated
from xalen_batch.models import ApiKey


@pytest.mark.parametrize(("livemode", "prefix"), [(False, "xln_test_"), (True, "xln_live_")])
def test_a_key_is_kept_as_its_hash_only(session: Session, livemode: bool, prefix: str) -> None:
    key, secret = accounts.create_key(session, factories.account(session), livemode=livemode, name="ci")
    assert re.fullmatch(prefix + "[0-9A-Za-z]{32}", secret)
    assert key.hash == hashlib.sha256(secret.encode()).digest()
    assert key.prefix == secret[: len(prefix) + 4]
    assert accounts.authenticate(session, secret) == accounts.Caller(
        key.account_id, livemode, frozenset({"submit", "read", "billing"}), key.id
    )


def test_a_revoked_key_and_an_expired_one_are_refused(session: Session) -> None:
    account = factories.account(session)
    key, secret = accounts.create_key(session, account, livemode=False, name="old")
    accounts.revoke_key(session, key.id)
    revoked_at = key.revoked_at
    assert accounts.revoke_key(session, key.id).revoked_at == revoked_at
    with pytest.raises(Unauthenticated, match="revoked"):
        accounts.authenticate(session, secret)
    _, expired = accounts.create_key(session, account, livemode=False, name="short", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(Unauthenticated, match="expired"):
        accounts.authenticate(session, expired)
    assert [found.name for found in accounts.list_keys(session)] == ["old", "short"]


@pytest.mark.parametrize("secret", ["", "xln_test_", "sk-1", "\0", "é\ud800", "x" * 100_000])
def test_a_key_that_is_none_is_refused(session: Session, secret: str) -> None:
    with pytest.raises(Unauthenticated):
        accounts.authenticate(session, secret)


def test_last_use_is_written_at_most_once_a_minute(database: str) -> None:
    def use() -> datetime:
        with db.transaction() as session:
            accounts.authenticate(session, secret)
        with db.transaction() as session:
            used = accounts.list_keys(session)[0].last_used_at
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


def test_names_and_scopes_are_checked(session: Session) -> None:
    account = factories.account(session, "acme")
    with pytest.raises(InvalidRequest, match="exists already"):
        accounts.create(session, "acme")
    with pytest.raises(InvalidRequest, match="root is no scope"):
        accounts.create_key(session, account, livemode=False, name="x", scopes=["read", "root"])
    with pytest.raises(NotFound):
        accounts.revoke_key(session, ids.new())
    reader = accounts.authenticate(session, factories.key(session, account, scopes=["read"]))
    reader.require(accounts.Scope.READ)
    with pytest.raises(Forbidden, match="`submit`"):
        reader.require(accounts.Scope.SUBMIT)

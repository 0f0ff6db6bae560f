"""Sessions of the console as rows: each stands for a key, with the rights that the key has now."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from tests import factories
from tests.conftest import as_owner
from xalen_batch import db
from xalen_batch.accounts import sessions
from xalen_batch.accounts.accounts import Caller
from xalen_batch.errors import Unauthenticated
from xalen_batch.models import ApiKey, ConsoleToken


@pytest.fixture
def caller(session: Session) -> Caller:
    return factories.caller(session)


def test_a_session_has_the_scopes_that_its_key_has_now(session: Session, caller: Caller) -> None:
    token = sessions.open(session, caller)
    assert sessions.authenticate(session, token).caller == caller
    session.get_one(ApiKey, caller.key_id).scopes = ["read"]
    session.flush()
    assert sessions.authenticate(session, token).caller.scopes == {"read"}


def test_each_session_has_a_csrf_token_of_its_own(session: Session, caller: Caller) -> None:
    first, second = (sessions.open(session, caller) for _ in range(2))
    tokens = {sessions.authenticate(session, token).csrf for token in (first, second)}
    assert len(tokens | {first, second}) == 4


def test_a_link_opens_one_session(session: Session, caller: Caller) -> None:
    link = sessions.link(session, caller)
    opened = sessions.redeem(session, link)
    assert sessions.authenticate(session, opened).caller == caller
    with pytest.raises(Unauthenticated, match="used already or is older than 15 minutes"):
        sessions.redeem(session, link)


def test_a_link_of_a_revoked_key_opens_none(session: Session, caller: Caller) -> None:
    link = sessions.link(session, caller)
    session.get_one(ApiKey, caller.key_id).revoked_at = func.now()
    session.flush()
    with pytest.raises(Unauthenticated, match="was revoked"):
        sessions.redeem(session, link)


def test_expired_tokens_go_with_the_next_sign_in(database: str) -> None:
    with db.transaction() as session:
        for _ in range(3):
            sessions.open(session, factories.caller(session))
    with as_owner() as session:
        session.execute(
            text("UPDATE console_tokens SET expires_at = now() - :ago"),
            {"ago": timedelta(seconds=1)},
        )
    with db.transaction() as session:
        sessions.open(session, factories.caller(session))
        assert session.scalar(select(func.count()).select_from(ConsoleToken)) == 1

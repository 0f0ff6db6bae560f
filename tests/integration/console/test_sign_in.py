"""Sessions of the console: a key opens one, and it has no more rights and no longer life."""

from collections.abc import Callable

import pytest
from sqlalchemy import func, select, text

from tests import factories
from tests.conftest import as_owner
from tests.integration.console.conftest import Browser, Person
from xalen_batch import db
from xalen_batch.accounts import accounts, audit, keys, sessions
from xalen_batch.models import Account, ApiKey, ConsoleToken
from xalen_batch.standalone import credentials


@pytest.fixture
def stranger(console_port: int, database: str, valkey: object) -> Browser:
    return Browser(console_port)


def a_key(**options: object) -> str:
    with db.transaction() as session:
        return factories.key(session, **options)


class TestOpening:
    def test_a_page_without_a_session_leads_to_the_sign_in_and_back(
        self, stranger: Browser
    ) -> None:
        seen = stranger.get("/console/batches?status=failed")
        assert (seen.status, seen.location) == (
            303,
            "/console/sign-in?next=%2Fconsole%2Fbatches%3Fstatus%3Dfailed",
        )
        form = stranger.page(seen.location)
        assert 'name="next" value="/console/batches?status=failed"' in form.html
        done = stranger.post(
            "/console/sign-in", {"key": a_key(), "next": "/console/batches?status=failed"}
        )
        assert (done.status, done.location) == (303, "/console/batches?status=failed")

    def test_the_cookie_is_kept_from_scripts_and_other_sites(self, stranger: Browser) -> None:
        cookie = stranger.post("/console/sign-in", {"key": a_key()}).headers["set-cookie"]
        parts = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "samesite=strict", "path=/console", "max-age=43200"} <= parts
        assert "secure" not in parts

    def test_the_key_is_not_in_the_cookie_nor_in_the_database(self, stranger: Browser) -> None:
        key = a_key()
        stranger.post("/console/sign-in", {"key": key})
        token = stranger.cookies["xalen_console"]
        assert key not in token
        with db.reading() as session:
            stored = session.scalars(select(ConsoleToken)).one()
        assert token.encode() not in stored.hash

    def test_it_is_written_to_the_audit_log(self, visitor: Person) -> None:
        with db.reading() as session:
            found = audit.entries(session, object_id=visitor.caller.actor, limit=10)
        assert [(entry.actor, entry.action) for entry in found][-1] == (
            visitor.caller.actor,
            "key.signed_in",
        )

    @pytest.mark.parametrize(
        "elsewhere",
        [
            "https://evil.example/",
            "//evil.example",
            "/console/..//evil",
            "/v1/files",
            "/console\\@x",
        ],
    )
    def test_it_leads_nowhere_else(self, stranger: Browser, elsewhere: str) -> None:
        seen = stranger.post("/console/sign-in", {"key": a_key(), "next": elsewhere})
        assert seen.location == "/console"

    @pytest.mark.parametrize(
        ("key", "says"),
        [
            ("", "Incorrect API key"),
            ("xln_test_short", "mistyped or cut short"),
            ("xln_test_" + "a" * 32, "no such key"),
            ("<script>alert(1)</script>", "Incorrect API key"),
        ],
    )
    def test_a_wrong_key_is_told_why(self, stranger: Browser, key: str, says: str) -> None:
        seen = stranger.post("/console/sign-in", {"key": key})
        assert seen.status == 401
        assert says in seen.text
        assert "<script>alert" not in seen.html
        assert "set-cookie" not in seen.headers

    def test_attempts_are_limited_by_address(
        self, stranger: Browser, configure: Callable[..., None]
    ) -> None:
        configure(failed_auth_per_minute=3)
        statuses = [
            stranger.post("/console/sign-in", {"key": "xln_test_x"}).status for _ in range(5)
        ]
        assert statuses == [401, 401, 401, 429, 429]
        assert stranger.post("/console/sign-in", {"key": a_key()}).status == 303

    def test_a_key_that_shows_nothing_is_refused(self, stranger: Browser) -> None:
        seen = stranger.post("/console/sign-in", {"key": a_key(scopes=["submit"])})
        assert seen.status == 403
        assert "scope read or billing" in seen.text.replace("`", "")

    def test_a_form_of_another_site_is_refused(self, stranger: Browser) -> None:
        for origin in ("https://evil.example", "null"):
            seen = stranger.post("/console/sign-in", {"key": a_key()}, origin=origin)
            assert seen.status == 403
        own = f"http://127.0.0.1:{stranger.port}"
        assert stranger.post("/console/sign-in", {"key": a_key()}, origin=own).status == 303


class TestEnding:
    def test_signing_out_ends_it(self, browser: Browser) -> None:
        browser.page("/console/batches")
        token = dict(browser.cookies)
        assert browser.post("/console/sign-out").location == "/console/sign-in"
        assert browser.cookies == {}
        browser.cookies |= token
        assert browser.get("/console/batches").status == 303

    def test_a_revoked_key_ends_it_at_once(self, visitor: Person) -> None:
        visitor.browser.page("/console/batches")
        with db.transaction() as session:
            keys.revoke(session, session.get_one(ApiKey, visitor.caller.key_id))
        assert visitor.browser.get("/console/batches").status == 303
        assert visitor.browser.cookies == {}

    def test_an_expired_key_ends_it_at_once(self, visitor: Person) -> None:
        with db.transaction() as session:
            session.get_one(ApiKey, visitor.caller.key_id).expires_at = db.now(session)
        assert visitor.browser.get("/console/batches").status == 303

    def test_a_disabled_account_is_told_so(self, visitor: Person) -> None:
        with db.transaction() as session:
            accounts.disable(session, session.get_one(Account, visitor.caller.account_id))
        seen = visitor.browser.get("/console/batches")
        assert seen.status == 403
        assert "account of this API key is disabled" in seen.text

    def test_it_ends_by_itself(self, browser: Browser) -> None:
        with as_owner() as session:
            session.execute(text("UPDATE console_tokens SET expires_at = now()"))
        assert browser.get("/console/batches").status == 303

    def test_htmx_is_led_to_the_sign_in_as_a_whole(self, browser: Browser) -> None:
        browser.cookies["xalen_console"] = "gone"
        seen = browser.get("/console/batches", **{"hx-request": "true"})
        assert seen.status == 401
        assert seen.headers["hx-redirect"].startswith("/console/sign-in?next=")


class TestLinks:
    def test_a_link_signs_in_once(self, stranger: Browser) -> None:
        with db.transaction() as session:
            token = sessions.link(session, factories.caller(session))
        assert stranger.get(f"/console/sign-in/{token}").location == "/console"
        stranger.page("/console/batches")
        again = Browser(stranger.port)
        seen = again.get(f"/console/sign-in/{token}")
        assert seen.status == 401
        assert "used already" in seen.text
        assert again.cookies == {}

    def test_the_link_of_up_signs_in_to_test_mode(self, stranger: Browser) -> None:
        with db.transaction() as session:
            keys = {name: factories.key(session) for name in ("test_key", "live_key")}
            base = f"http://127.0.0.1:{stranger.port}/v1"
            link = credentials.sign_in_link(session, credentials.Credentials(base, **keys))
        origin, _, path = link.partition("/console")
        assert origin == base.removesuffix("/v1")
        stranger.get(f"/console{path}")
        assert "Test mode" in stranger.page("/console").text

    def test_the_token_of_a_link_is_no_session(self, stranger: Browser) -> None:
        with db.transaction() as session:
            stranger.cookies["xalen_console"] = sessions.link(session, factories.caller(session))
        assert stranger.get("/console/batches").status == 303

    def test_the_token_of_a_session_is_no_link(self, browser: Browser) -> None:
        other = Browser(browser.port)
        assert other.get(f"/console/sign-in/{browser.cookies['xalen_console']}").status == 401


class TestForms:
    def test_a_form_needs_the_token_of_its_session(
        self, browser: Browser, signed_in: Callable[..., Person]
    ) -> None:
        other = signed_in().browser
        other.page("/console/batches")
        for token in ("", "0" * 64, other.csrf):
            seen = browser.post("/console/sign-out", {"csrf": token})
            assert seen.status == 403
            assert "not one of your session" in seen.text
        browser.page("/console/batches")

    def test_the_sessions_of_a_key_are_bounded(self, visitor: Person) -> None:
        with db.transaction() as session:
            for _ in range(sessions.MOST_OF_KEY + 5):
                sessions.open(session, visitor.caller)
        with db.reading() as session:
            count = session.scalar(select(func.count()).select_from(ConsoleToken))
        assert count == sessions.MOST_OF_KEY

"""Every page: its headers, its weight, what it shows of others, and what hostile texts do in it."""

import gzip
import hashlib
import re
from collections.abc import Callable

import pytest
from fastapi import FastAPI

from tests.integration.console import made
from tests.integration.console.conftest import Browser, Person
from tests.integration.console.made import HOSTILE, Made, addresses
from xalen_batch import db
from xalen_batch.accounts.accounts import ORDINARY, Scope
from xalen_batch.console import assets, pages, views
from xalen_batch.console.routes import PageRoute
from xalen_batch.models import Account

# Bytes of a page with its assets, compressed.
HEAVIEST = 60_000
NEEDS_NO_SESSION = {
    "/console/sign-in",
    "/console/sign-in/{token}",
    "/console/sign-out",
    "/console/{rest:path}",
}


def routes() -> list[tuple[str, str]]:
    """(method, path) of every route of the console."""
    app = FastAPI()
    pages.install(app)
    found = []
    stack = list(app.routes)
    while stack:
        route = stack.pop()
        if isinstance(route, PageRoute):
            found += [(method, route.path) for method in sorted(route.methods)]
        original = getattr(route, "original_router", None)
        stack += list(getattr(original, "routes", []))
    return sorted(found)


ROUTES = routes()


# Pages with prices and estimates, which are no secret.
PRICES = {"/console/batches/new", "/console/models"}
# Routes that answer with something else than a page.
NO_PAGES = {
    "/console/go",
    "/console/batches/{batch_id}/events",
    "/console/batches/{batch_id}/output",
    "/console/batches/{batch_id}/errors",
    "/console/files/{file_id}/content",
    "/console/invoices/csv",
    "/console/invoices/{id}/lines",
}


@pytest.fixture
def found(visitor: Person) -> Made:
    return made.everything(visitor.caller)


@pytest.fixture
def everything(found: Made) -> dict[str, list[str]]:
    return addresses(found)


def test_every_page_is_walked(everything: dict[str, list[str]]) -> None:
    read = {path for method, path in ROUTES if method == "GET"}
    assert len(read) > 8
    assert read - NO_PAGES - NEEDS_NO_SESSION == set(everything)


def test_hostile_texts_are_inert(visitor: Person, everything: dict[str, list[str]]) -> None:
    shown = ""
    for some in everything.values():
        for address in some:
            page = visitor.browser.page(address)
            for text in HOSTILE[:3]:
                assert text not in page.html, address
            shown += page.text
    # They are there, as texts.
    for text in HOSTILE[:2]:
        assert " ".join(text.split()) in shown
    assert "{{ 7 * 7 }}" in shown


def test_a_page_is_light(visitor: Person, everything: dict[str, list[str]]) -> None:
    with_it = sum(
        len(gzip.compress(path.read_bytes(), 6))
        for path in assets.FOLDER.iterdir()
        if path.suffix in (".css", ".js", ".svg")
    )
    for some in everything.values():
        for address in some:
            assert visitor.browser.page(address).weight + with_it < HEAVIEST, address


@pytest.mark.parametrize(
    ("method", "path"), [each for each in ROUTES if each[1] not in NEEDS_NO_SESSION]
)
def test_no_route_answers_without_a_session(
    console_port: int, database: str, valkey: object, method: str, path: str
) -> None:
    stranger = Browser(console_port)
    seen = stranger.get(path) if method == "GET" else stranger.post(path)
    assert seen.status == 303, (path, seen.status)
    assert seen.location.startswith("/console/sign-in?next=")
    assert seen.headers["content-security-policy"] == views.POLICY


@pytest.mark.parametrize(
    "path", [path for method, path in ROUTES if method == "POST" and path != "/console/sign-in"]
)
def test_no_form_is_taken_without_its_token(signed_in: Callable[..., Person], path: str) -> None:
    seen = signed_in(scopes=list(Scope)).browser.post(path, {"csrf": "0" * 64})
    assert seen.status == 403, (path, seen.text)
    assert "not one of your session" in seen.text


def test_others_objects_are_not_found(
    signed_in: Callable[..., Person], everything: dict[str, list[str]], visitor: Person
) -> None:
    with db.reading() as session:
        same = session.get_one(Account, visitor.caller.account_id)
    others = [signed_in().browser, signed_in(of=same, livemode=True).browser]
    for path, some in everything.items():
        for address in some:
            if "{" not in path and "file_id" not in address:
                continue
            for other in others:
                assert other.get(address).status in (400, 404), address


def test_others_objects_are_in_no_list(
    signed_in: Callable[..., Person],
    everything: dict[str, list[str]],
    found: Made,
    visitor: Person,
) -> None:
    with db.reading() as session:
        same = session.get_one(Account, visitor.caller.account_id)
    others = [signed_in().browser, signed_in(of=same, livemode=True).browser]
    for path, some in everything.items():
        if "{" in path:
            continue
        for other in others:
            page = other.page(some[0]).text
            for object in vars(found).values():
                assert object not in page, path


@pytest.mark.parametrize("scope", list(Scope))
def test_a_scope_that_is_missing_is_named(
    signed_in: Callable[..., Person], visitor: Person, scope: Scope
) -> None:
    """No page is shown to a key without its scope; the frame of the refusal still is."""
    with db.reading() as session:
        same = session.get_one(Account, visitor.caller.account_id)
    left = [each for each in (*ORDINARY, Scope.ADMIN) if each != scope]
    other = signed_in(of=same, scopes=left).browser
    found = addresses(made.everything(visitor.caller))
    for path, some in found.items():
        seen = other.get(some[0])
        assert seen.status in (200, 403), path
        if seen.status == 403:
            assert f"lacks the scope {scope}" in seen.text.replace("`", "")
        if scope is Scope.BILLING and seen.status == 200:
            assert not re.search(r"\bUSD\b", seen.text) or path in PRICES, path


def test_a_reader_gets_no_button_that_changes_something(
    signed_in: Callable[..., Person], visitor: Person
) -> None:
    with db.reading() as session:
        same = session.get_one(Account, visitor.caller.account_id)
    reader = signed_in(of=same, scopes=["read"]).browser
    found = made.everything(visitor.caller)
    for path in ("/console", "/console/batches", f"/console/batches/{found.waiting}"):
        page = reader.page(path)
        assert "read only" in page.text
        for verb in ("New batch", "Cancel", "Retry"):
            assert verb not in page.text, path


@pytest.mark.parametrize(("livemode", "mode"), [(True, "live"), (False, "test")])
def test_the_mode_is_always_visible(
    signed_in: Callable[..., Person], livemode: bool, mode: str
) -> None:
    browser = signed_in(livemode=livemode).browser
    for path in ("/console", "/console/batches", "/console/batches/new"):
        page = browser.page(path)
        assert f'class="{mode}"' in page.html
        assert ("Test mode: simulated answers" in page.text) is not livemode
        assert ("<title>TEST · " in page.html) is not livemode


def test_an_unknown_page_says_so(browser: Browser) -> None:
    seen = browser.get("/console/nothing/here")
    assert seen.status == 404
    assert "There is no page /console/nothing/here" in seen.text


def test_a_crash_is_a_page_too(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr("xalen_batch.console.batches.rows", crash)
    seen = browser.get("/console/batches")
    assert seen.status == 500
    assert "Something failed on our side" in seen.text
    assert "secret" not in seen.html


def test_assets_are_kept_by_browsers_for_their_version(browser: Browser) -> None:
    kept = browser.get(assets.url("console.css"))
    assert (kept.status, kept.headers["cache-control"]) == (
        200,
        "public, max-age=31536000, immutable",
    )
    assert browser.get(f"{assets.PATH}/console.css").headers["cache-control"] == "no-cache"


def test_htmx_is_the_file_that_was_published() -> None:
    digest = hashlib.sha256((assets.FOLDER / "htmx.js").read_bytes()).hexdigest()
    assert digest in (assets.__doc__ or "")

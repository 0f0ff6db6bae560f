"""The API with the console on a real socket, and a browser of it without scripts."""

import gzip
import http.client
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import pytest
import uvicorn

from tests import factories
from tests.conftest import Stores
from tests.integration.conftest import multipart
from tests.waiting import PATIENCE
from xalen_batch import db
from xalen_batch.accounts import accounts
from xalen_batch.accounts.accounts import Caller
from xalen_batch.api import app
from xalen_batch.api.http.protocol import BoundedHttp
from xalen_batch.console import pages
from xalen_batch.models import Account

CSRF = re.compile(r'name="csrf" value="([0-9a-f]{64})"')
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Seen:
    """An answer of the console."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def html(self) -> str:
        return self.body.decode()

    @property
    def text(self) -> str:
        """What is read on the page: without tags, blanks as one."""
        bare = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", self.html, flags=re.DOTALL)
        return " ".join(unescape(bare).split())

    @property
    def location(self) -> str:
        return self.headers["location"]

    @property
    def weight(self) -> int:
        """Bytes, compressed as a proxy does."""
        return len(gzip.compress(self.body, 6))


class Tags(HTMLParser):
    """Notes the tags and attributes of a page that would run or load something of an attacker."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.odd: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("img", "iframe", "object", "embed", "style", "b64"):
            self.odd.append(tag)
        for name, value in attrs:
            is_address = name in ("href", "src", "action", "formaction")
            if name.startswith("on") or name == "style":
                self.odd.append(f"{tag} {name}")
            if is_address and not (value or "").startswith(("/console", "#")):
                self.odd.append(f"{tag} {name}={value}")
        if tag == "script" and not (dict(attrs).get("src") or "").startswith("/console/static/"):
            self.odd.append("script")


@dataclass
class Browser:
    """Keeps cookies, and sends the CSRF token of the page that it saw last."""

    port: int
    cookies: dict[str, str] = field(default_factory=dict)
    csrf: str = ""

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Seen:
        sent = dict(headers or {})
        if self.cookies:
            sent["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            found = Seen(
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                answer.read(),
            )
        finally:
            connection.close()
        self._keep(found)
        return found

    def get(self, path: str, **headers: str) -> Seen:
        return self.ask("GET", path, headers=headers)

    def page(self, path: str) -> Seen:
        """A page that must be there, with the headers that all pages have."""
        found = self.get(path)
        assert found.status == 200, (path, found.status, found.text)
        assert found.headers["content-security-policy"] == POLICY
        assert found.headers["cache-control"] == "no-store"
        assert found.headers["x-content-type-options"] == "nosniff"
        assert Tags(found.html).odd == [], path
        return found

    def post(self, path: str, fields: Any = (), **headers: str) -> Seen:
        """Send a form, with the CSRF token unless the fields have one."""
        pairs = list(fields.items() if isinstance(fields, dict) else fields)
        if "csrf" not in dict(pairs):
            pairs.append(("csrf", self.csrf))
        kind = {"content-type": "application/x-www-form-urlencoded"}
        return self.ask("POST", path, urlencode(pairs).encode(), kind | headers)

    def upload(self, path: str, content: bytes, filename: str = "input.jsonl") -> Seen:
        kind, body = multipart(("purpose", None, b"batch"), ("file", filename, content))
        return self.ask("POST", path, body, {"content-type": kind})

    def sign_in(self, key: str) -> "Browser":
        found = self.post("/console/sign-in", {"key": key, "csrf": ""})
        assert found.status == 303, found.text
        assert found.location in ("/console", "/console/invoices")
        return self

    def _keep(self, found: Seen) -> None:
        for cookie in [found.headers["set-cookie"]] if "set-cookie" in found.headers else []:
            name, _, value = cookie.partition(";")[0].partition("=")
            if value.strip('"'):
                self.cookies[name] = value
            else:
                self.cookies.pop(name, None)
        token = CSRF.search(found.body.decode("utf-8", "replace"))
        if token:
            self.csrf = token[1]


@pytest.fixture(scope="session")
def console_port(stores: Stores) -> Iterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    made = app.create_app()
    pages.install(made)
    server = uvicorn.Server(
        uvicorn.Config(
            made,
            loop="uvloop",
            http=BoundedHttp,
            ws="none",
            log_config=None,
            access_log=False,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(timeout=PATIENCE)
    listening.close()


@dataclass(frozen=True)
class Person:
    """An account with a key of all ordinary scopes in one mode, and a browser of it."""

    caller: Caller
    key: str
    browser: Browser


@pytest.fixture
def signed_in(console_port: int, database: str, valkey: object) -> Callable[..., Person]:
    """`signed_in(scopes=["read"], livemode=True)`: a new account, whose browser is signed in."""

    def make(name: str | None = None, *, of: Account | None = None, **options: Any) -> Person:
        with db.transaction() as session:
            key = factories.key(session, of or factories.account(session, name), **options)
            caller = accounts.authenticate(session, key)
        return Person(caller, key, Browser(console_port).sign_in(key))

    return make


@pytest.fixture
def visitor(signed_in: Callable[..., Person]) -> Person:
    return signed_in()


@pytest.fixture
def browser(visitor: Person) -> Browser:
    return visitor.browser

"""A whole system with the objects of the pages, and signed-in browsers of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.browser import chromium
from tests.e2e import processes
from tests.e2e.processes import System
from tests.factories import chat_line, jsonl
from tests.integration.conftest import Api, multipart
from tests.integration.console.made import HOSTILE
from tests.waiting import wait_until

AXE = Path(__file__).with_name("axe.min.js")
# Rules of WCAG 2.2 at the levels A and AA, and axe's own good practice.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# Notes violations of the Content-Security-Policy as the page's scripts would see them.
WATCH = """
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) =>
        window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""

# The elements that reach beyond the window.
WIDE = """
    [...document.querySelectorAll("main *")]
        .filter((each) => each.getBoundingClientRect().right > document.documentElement.clientWidth)
        .slice(0, 3).map((each) => each.outerHTML.slice(0, 120))
"""


@dataclass
class Tab:
    """A page, and what went wrong in it."""

    page: Page
    address: str
    wrong: list[str] = field(default_factory=list)

    def open(self, path: str) -> Page:
        answer = self.page.goto(f"{self.address}{path}")
        assert answer is not None
        assert answer.status == 200, (path, answer.status)
        return self.page

    def problems(self) -> list[str]:
        """Violations of the policy, errors of scripts, and a page wider than its window."""
        found = [*self.page.evaluate("window.violations"), *self.wrong]
        root = "document.documentElement"
        wider = self.page.evaluate(f"{root}.scrollWidth - {root}.clientWidth")
        return [*found, f"{wider} px too wide: {self.page.evaluate(WIDE)}"] if wider > 0 else found

    def violations(self) -> list[str]:
        """What axe finds, by rule, with the elements."""
        self.page.evaluate(AXE.read_text("utf-8"))
        options = {"runOnly": {"type": "tag", "values": RULES}, "resultTypes": ["violations"]}
        found = self.page.evaluate("(options) => axe.run(document, options)", options)
        return [
            f"{violation['id']}: {[node['html'][:200] for node in violation['nodes']]}"
            for violation in found["violations"]
        ]


@dataclass(frozen=True)
class Seeded:
    """A system, and the addresses of its pages."""

    system: System
    pages: list[str]


class Client:
    """Requests to the API of a system with its test key."""

    def __init__(self, system: System) -> None:
        self._api = Api(system.port, system.test_key)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        answer = self._api.ask(method, f"/v1{path}", body, headers=headers)
        assert answer.status == 200, answer.body
        return answer.json

    def upload(self, content: bytes, name: str) -> str:
        quoted = name.replace("\\", "").replace('"', "%22")
        kind, body = multipart(("purpose", None, b"batch"), ("file", quoted, content))
        id: str = self.ask("POST", "/files", body, **{"content-type": kind})["id"]
        return id

    def submit(self, content: bytes, name: str, **fields: Any) -> str:
        body = {
            "input_file_id": self.upload(content, name),
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            **fields,
        }
        id: str = self.ask("POST", "/batches", body)["id"]
        return id


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeded]:
    """Batches that ended, failed and wait, a schedule and a webhook, with hostile texts."""
    with processes.up(tmp_path_factory.mktemp("browser") / "data", tick_interval=1) as system:
        client = Client(system)
        notes = {f"note {number}": text for number, text in enumerate(HOSTILE)}
        good = jsonl([chat_line(text, text) for text in HOSTILE])
        ended = client.submit(good, HOSTILE[0], metadata=notes)
        bad = jsonl([chat_line("a"), chat_line("a"), chat_line(HOSTILE[0], model=HOSTILE[1])])
        failed = client.submit(bad, "a-file-with-a-long-name-" + "x" * 60 + ".jsonl")
        closed = {"start": "03:00", "end": "03:01", "days": ["mon"]}
        waiting = client.submit(good, HOSTILE[1], completion_window="7d", execution_window=closed)
        file = client.upload(bad, HOSTILE[2])
        schedule = client.ask(
            "POST",
            "/schedules",
            {
                "name": HOSTILE[0],
                "cron": "30 2 * * *",
                "timezone": "Europe/Berlin",
                "endpoint": "/v1/chat/completions",
                "inbox": {},
            },
        )["id"]
        webhook = client.ask(
            "POST", "/webhooks", {"url": "https://hooks.invalid/a", "enabled": False}
        )["id"]
        wait_until(
            lambda: (
                client.ask("GET", f"/batches/{ended}")["status"] == "completed"
                and client.ask("GET", f"/batches/{failed}")["status"] == "failed"
            ),
            timeout=60,
        )
        yield Seeded(
            system,
            [
                "/console",
                "/console/batches",
                f"/console/batches/{ended}",
                f"/console/batches/{failed}",
                f"/console/batches/{waiting}",
                f"/console/batches/{ended}/line?id=javascript%3Aalert(1)",
                f"/console/batches/{waiting}/cancel",
                "/console/batches/new",
                f"/console/batches/new?file_id={file}",
                "/console/schedules",
                f"/console/schedules/{schedule}",
                "/console/files",
                f"/console/files/{file}",
                "/console/invoices",
                f"/console/invoices/{ended}",
                "/console/models",
                "/console/settings",
                f"/console/settings/webhooks/{webhook}",
            ],
        )


@pytest.fixture(scope="session")
def chrome() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # The sandbox of Chromium does not start as root, as in containers.
        browser = playwright.chromium.launch(executable_path=chromium.path(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def session_cookie(seeded: Seeded, chrome: Browser) -> dict[str, Any]:
    """The state of a browser that has signed in by its form."""
    context = chrome.new_context()
    page = context.new_page()
    page.goto(f"{seeded.system.address}/")
    page.get_by_label("API key").fill(seeded.system.test_key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/console")
    state: dict[str, Any] = dict(context.storage_state())
    context.close()
    return state


Open = Callable[..., Tab]


@pytest.fixture
def tab(seeded: Seeded, chrome: Browser, session_cookie: dict[str, Any]) -> Iterator[Open]:
    """`tab(width=390, scheme="dark")`: a new signed-in tab."""
    contexts: list[BrowserContext] = []

    def make(*, width: int = 1280, scheme: str = "light", **options: Any) -> Tab:
        context = chrome.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            storage_state=session_cookie,
            reduced_motion="reduce",
            **options,
        )
        contexts.append(context)
        context.add_init_script(WATCH)
        made = Tab(context.new_page(), seeded.system.address)
        made.page.on("pageerror", lambda error: made.wrong.append(str(error)))
        made.page.on(
            "console",
            lambda message: (
                made.wrong.append(message.text)
                if "Content Security Policy" in message.text
                else None
            ),
        )
        return made

    yield make
    for context in contexts:
        context.close()

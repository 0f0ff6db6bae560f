"""`webhooks` on the command line: each event once, in spite of late ones, and words for people."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.unit.cli.fake_api import Api, serving
from xalen_batch.cli import client
from xalen_batch.cli.client import ApiOptions
from xalen_batch.cli.main import app
from xalen_batch.cli.webhooks.listen import LOOK_BACK, Events

WEBHOOK: dict[str, Any] = {
    "id": "whe_1",
    "object": "webhook_endpoint",
    "url": "https://example.com/hooks",
    "description": "on call",
    "events": ["batch.failed"],
    "status": "disabled",
    "disabled_reason": "gone",
    "batch_id": None,
    "created_at": 1_795_953_600,
    "previous_secret_expires_at": 1_796_000_000,
    "last_delivery_at": 1_795_953_700,
    "last_status_code": 410,
    "consecutive_failures": 1,
    "livemode": False,
}


def event(number: int) -> dict[str, Any]:
    return {
        "id": f"evt_{number}",
        "object": "event",
        "created_at": 1_795_953_600,
        "type": "batch.completed",
        "data": {"id": f"batch_{number}"},
    }


def delivery(**fields: Any) -> dict[str, Any]:
    return {
        "id": "evt_1",
        "object": "webhook_delivery",
        "event": event(1),
        "state": "pending",
        "attempts": 0,
        "next_attempt_at": 1_795_953_600,
        "last_attempt_at": None,
        "duration_ms": None,
        "status_code": None,
        "error": None,
        "response": None,
        **fields,
    }


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(client, "PAUSES", ())
    with serving() as server:
        yield server


def answers(api: Api, *pages: list[dict[str, Any]], more: bool = False) -> None:
    for number, page in enumerate(pages):
        is_last = number == len(pages) - 1
        body = {
            "object": "list",
            "data": page,
            "last_id": page[-1]["id"] if page else None,
            "has_more": more and not is_last,
        }
        api.answers.append((200, {}, json.dumps(body).encode()))


def run(api: Api, *arguments: str) -> Result:
    return CliRunner().invoke(
        app,
        ["webhooks", *arguments, "--base-url", api.base_url, "--api-key", "xln_test_secret"],
    )


class TestListen:
    def events(self, api: Api) -> Events:
        return Events(ApiOptions(api.base_url, "xln_test_secret").connect())

    def test_events_from_before_are_not_printed_and_late_ones_are(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers(api, [event(3), event(1)])
        following = self.events(api)
        # Event 2 was committed behind event 3.
        answers(api, [event(1), event(2), event(3), event(4)])
        assert list(following.new()) == [event(2), event(4)]
        answers(api, [event(1), event(2), event(3), event(4)])
        assert list(following.new()) == []
        # The position moves on once nothing can come before it any more.
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 2 * LOOK_BACK)
        answers(api, [event(5)])
        assert list(following.new()) == [event(5)]
        assert [path.partition("?")[2] for _, path, _, _ in api.requests[-2:]] == [
            "order=asc&limit=100",
            "order=asc&limit=100&after=evt_4",
        ]
        assert set(following._seen) == {"evt_4", "evt_5"}

    def test_pages_are_read_to_their_end(self, api: Api) -> None:
        answers(api, [])
        following = self.events(api)
        answers(api, [event(1), event(2)], [event(3)], more=True)
        assert list(following.new()) == [event(1), event(2), event(3)]


def test_listening_for_an_unknown_type_is_an_error_before_it_waits(api: Api) -> None:
    error = {"message": "Invalid `type`: should be 'batch.completed'; got 'nope'.", "param": "type"}
    api.answers.append((400, {}, json.dumps({"error": error}).encode()))
    refused = run(api, "listen", "--events", "nope")
    assert (refused.exit_code, "got 'nope'" in refused.stderr) == (1, True)
    assert api.requests[0][1].endswith("/events?limit=1&type=nope")


def test_an_endpoint_is_shown_with_why_it_is_disabled(api: Api) -> None:
    api.answers.append((200, {}, json.dumps(WEBHOOK).encode()))
    shown = run(api, "show", "whe_1").stdout
    for words in ("on call", "batch.failed", "disabled, gone", "410", "2026-11-29", "old secret"):
        assert words in shown


def test_lists_are_tables_or_a_hint(api: Api) -> None:
    answers(api, [WEBHOOK])
    assert "https://example.com/hooks" in run(api, "list").stdout
    answers(api, [])
    assert "No webhooks yet" in run(api, "list").stderr
    answers(api, [delivery(attempts=1, error="The receiver answered 500.", status_code=500)])
    found = run(api, "deliveries", "whe_1").stdout
    assert "The receiver answered 500. Next attempt: 2026-11-29" in found
    answers(api, [])
    assert "No deliveries" in run(api, "deliveries", "whe_1").stderr


def test_the_secret_alone_is_on_stdout(api: Api) -> None:
    api.answers.append((200, {}, json.dumps(WEBHOOK | {"secret": "whsec_x"}).encode()))
    made = run(
        api, "create", "https://example.com/hooks", "--events", "batch.failed, batch.expired"
    )
    assert made.stdout == "whsec_x\n"
    assert "not shown again" in made.stderr
    assert json.loads(api.requests[0][3])["events"] == ["batch.failed", "batch.expired"]


def test_a_test_waits_for_its_attempt_and_fails_with_it(api: Api) -> None:
    api.answers.append((200, {}, json.dumps(delivery()).encode()))
    answers(api, [delivery()])
    answers(api, [delivery(attempts=1, error="No answer: refused.")])
    tested = run(api, "test", "whe_1")
    assert tested.exit_code == 1
    assert "No answer: refused." in tested.stderr


def test_a_change_of_nothing_and_an_id_of_another_kind_are_usage_errors(api: Api) -> None:
    nothing = run(api, "update", "whe_1")
    assert (nothing.exit_code, "Nothing to change" in nothing.stderr) == (2, True)
    other = run(api, "show", "batch_1")
    assert (other.exit_code, "not the id of a webhook" in other.stderr) == (2, True)

"""The states of a batch come from its event stream, and from polls where that fails."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.cli.fake_api import Api, serving
from xalen_batch.cli import client as client_module
from xalen_batch.cli import states
from xalen_batch.cli.client import ApiClient
from xalen_batch.cli.connection import ApiConnection
from xalen_batch.cli.failures import TIMED_OUT, Failed
from xalen_batch.cli.states import States

EVENTS = "/v1/batches/batch_1/events"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(states, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(client_module, "PAUSES", ())
    with serving() as server:
        server.has_events = True
        yield server


def batch(status: str, done: int = 0) -> dict[str, Any]:
    return {"id": "batch_1", "status": status, "done": done}


def ok(status: str, done: int = 0) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps(batch(status, done)).encode()


def stream(*events: dict[str, Any] | None, more: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    body = b"retry: 2000\n\n"
    for event in events:
        told = b": heartbeat" if event is None else b"data: " + json.dumps(event).encode()
        body += b"id: x\nevent: progress\n" * (event is not None) + told + b"\n\n"
    return 200, {"content-type": "text/event-stream; charset=utf-8"}, body + more


def seen(api: Api, timeout: float | None = None) -> list[tuple[str, int]]:
    client = ApiClient(ApiConnection(api.base_url, "k"))
    return [(found["status"], found["done"]) for found in States(client, "batch_1", timeout)]


def paths(api: Api) -> list[str]:
    return [path for _, path, _, _ in api.requests]


def test_a_stream_tells_each_state_in_one_request(api: Api) -> None:
    api.answers = [
        ok("validating"),
        stream(batch("in_progress", 1), None, batch("in_progress", 2), batch("completed", 3)),
    ]
    assert [done for _, done in seen(api)] == [0, 1, 2, 3]
    assert paths(api) == ["/v1/batches/batch_1", EVENTS]


@pytest.mark.parametrize(
    "answer",
    [
        (404, {}, b'{"error":{"message":"no such route","code":"not_found"}}'),
        (429, {}, b'{"error":{"message":"too many","code":"too_many_streams"}}'),
        (200, {}, b'{"an":"older server"}'),
        stream(),
        stream(None, more=b"data: not JSON\n\n"),
        # It breaks off: fewer bytes than it announced.
        (200, {"content-type": "text/event-stream", "content-length": "999"}, b": hello\n\n"),
    ],
)
def test_without_a_stream_the_batch_is_polled(api: Api, answer: Any) -> None:
    api.answers = [ok("validating"), answer, ok("in_progress", 1), ok("completed", 2)]
    assert [done for _, done in seen(api)] == [0, 1, 2]
    assert paths(api).count(EVENTS) == 1


def test_a_stream_that_ends_early_is_opened_again_if_it_lasted(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "SHORTEST", 0.0)
    answers = [
        ok("validating"),
        stream(batch("in_progress", 1)),
        stream(batch("in_progress", 1), batch("completed", 2)),
    ]
    api.answers = list(answers)
    assert [done for _, done in seen(api)] == [0, 1, 1, 2]
    monkeypatch.setattr(states, "SHORTEST", 5.0)
    api.answers = [*answers[:2], ok("completed", 3)]
    assert [done for _, done in seen(api)] == [0, 1, 3]


def test_heartbeats_are_moments_to_look_at_the_whole_batch(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "LOOK_EVERY", 0.0)
    api.answers = [ok("in_progress"), stream(None, batch("completed", 9)), ok("in_progress", 7)]
    assert [done for _, done in seen(api)] == [0, 7, 9]


def test_an_ended_batch_needs_no_stream(api: Api) -> None:
    api.answers = [ok("cancelled")]
    assert seen(api) == [("cancelled", 0)]


def test_the_time_to_wait_holds_for_streams_too(api: Api) -> None:
    api.answers = [ok("in_progress")]
    with pytest.raises(Failed) as caught:
        seen(api, timeout=0)
    assert caught.value.exit_code == TIMED_OUT
    assert "Waited 0 s. The batch goes on" in str(caught.value)

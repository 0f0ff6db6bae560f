"""Server-sent events of a batch: its state, each change, its end, and what bounds the streams."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import UUID

import openai
import pytest

from tests import factories, ran
from tests.integration.conftest import Api
from tests.ran import BUSY, answered
from tests.waiting import PATIENCE, wait_until
from xalen_batch import db, ids
from xalen_batch.accounts import accounts
from xalen_batch.api import batch_events
from xalen_batch.api.http import event_feed, event_stream
from xalen_batch.models import Batch


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "LONGEST", PATIENCE)
    monkeypatch.setattr(event_feed, "EVERY", 0.02)


@pytest.fixture
def batch(api: Api) -> Batch:
    with db.transaction() as session:
        caller = accounts.authenticate(session, api.key)
    return ran.submitted([factories.chat_line("one"), factories.chat_line("two")], caller)


class Streamed:
    """An open stream, read event by event."""

    def __init__(self, api: Api, batch_id: UUID, **headers: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=PATIENCE)
        sent = {"authorization": f"Bearer {api.key}", **headers}
        path = f"/v1/batches/{ids.render('batch', batch_id)}/events"
        self._connection.request("GET", path, headers=sent)
        self.answer = self._connection.getresponse()
        self.status = self.answer.status

    def blocks(self) -> Iterator[dict[str, str]]:
        """The fields of each event; a comment is one of its own, with the name ""."""
        block: dict[str, str] = {}
        while line := self.answer.readline():
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if value and not name:
                yield {"": value}
            elif name:
                block[name] = value
            else:
                yield block
                block = {}

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for block in self.blocks():
            if "event" in block:
                yield block["event"], json.loads(block["data"])

    def close(self) -> None:
        self._connection.close()


def test_a_stream_tells_the_state_each_change_and_the_end(api: Api, batch: Batch) -> None:
    with closing(Streamed(api, batch.id)) as stream:
        assert stream.answer.headers["content-type"].startswith("text/event-stream")
        assert stream.answer.headers["x-accel-buffering"] == "no"
        events = stream.events()
        name, first = next(events)
        assert (name, first["status"], first["request_counts"]["total"]) == (
            "progress",
            "in_progress",
            2,
        )
        assert first == api.ask("GET", "/v1/batches").json["data"][0]
        ran.end(batch.id, {"one": answered(), "two": BUSY})
        *_, (name, last) = events
        assert (name, last["status"]) == ("batch.completed", "completed")
        assert last["request_counts"]["failed"] == 1
        # The answer has ended, and the connection serves the next request.
        assert stream.answer.isclosed()


def test_after_a_break_the_present_state_comes_first_unless_it_is_known(
    api: Api, batch: Batch
) -> None:
    with closing(Streamed(api, batch.id)) as stream:
        block = next(block for block in stream.blocks() if "id" in block)
    with closing(Streamed(api, batch.id, **{"last-event-id": "other"})) as stream:
        assert next(stream.blocks()) == block
    with closing(Streamed(api, batch.id, **{"last-event-id": block["id"]})) as stream:
        blocks = stream.blocks()
        assert next(blocks) == {"": "heartbeat"}
        ran.end(batch.id, {"one": answered(), "two": answered()})
        *_, last = blocks
        assert last["event"] == "batch.completed"
    with closing(Streamed(api, batch.id, **{"last-event-id": last["id"]})) as stream:
        assert stream.status == 204


def test_a_quiet_stream_has_heartbeats_and_an_end(
    api: Api, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT", 0.02)
    monkeypatch.setattr(event_stream, "LONGEST", 0.2)
    with closing(Streamed(api, batch.id)) as stream:
        blocks = [set(block) for block in stream.blocks()]
    assert blocks[0] == {"retry", "id", "event", "data"}
    assert blocks[1:]
    assert all(block == {""} for block in blocks[1:])


def test_openais_client_reads_the_stream(
    api: Api, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT", 0.01)
    path = f"/batches/{ids.render('batch', batch.id)}/events"
    with api.client.get(
        path, cast_to=openai.types.Batch, stream=True, stream_cls=openai.Stream[openai.types.Batch]
    ) as stream:
        assert next(stream).status == "in_progress"
        ran.end(batch.id, {"one": answered(), "two": answered()})
        *_, last = stream
    assert last.status == "completed"


def test_a_batch_that_has_ended_gives_one_event(api: Api, batch: Batch) -> None:
    ran.end(batch.id, {"one": answered()})
    with closing(Streamed(api, batch.id)) as stream:
        assert [name for name, _ in stream.events()] == ["batch.cancelled"]


def test_streams_are_bounded_and_one_poller_reads_for_all(
    api: Api, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = batch_events.feed._read

    def counting(batch_ids: Any) -> Any:
        asked.append(len(batch_ids))
        return read(batch_ids)

    monkeypatch.setattr(batch_events.feed, "_read", counting)
    monkeypatch.setattr(event_feed, "MOST_OF_ACCOUNT", 8)
    streams = [Streamed(api, batch.id) for _ in range(8)]
    refused = Streamed(api, batch.id)
    assert (refused.status, refused.answer.headers["retry-after"]) == (429, "30")
    assert json.loads(refused.answer.read())["error"]["code"] == "too_many_streams"
    wait_until(lambda: len(asked) > 2)
    assert set(asked) == {1}
    for stream in (*streams, refused):
        stream.close()
    # Places of clients that have gone are free again, and nobody is polled for.
    wait_until(lambda: not batch_events.feed._following)
    assert not batch_events.feed._of_account
    with closing(Streamed(api, batch.id)) as stream:
        assert stream.status == 200


def test_all_streams_together_are_bounded(
    api: Api, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "MOST_STREAMS", 1)
    with closing(Streamed(api, batch.id)) as stream:
        next(stream.events())
        with closing(Streamed(api, batch.id)) as refused:
            assert refused.status == 429


def test_a_database_that_is_away_leaves_the_streams_open(
    api: Api, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "PAUSE", 0.01)
    failed = threading.Event()
    read = batch_events.feed._read

    def failing_once(batch_ids: Any) -> Any:
        if not failed.is_set():
            failed.set()
            raise db.UNAVAILABLE[0]("SELECT", None, Exception("away"))
        return read(batch_ids)

    monkeypatch.setattr(batch_events.feed, "_read", failing_once)
    with closing(Streamed(api, batch.id)) as stream:
        events = stream.events()
        next(events)
        assert failed.wait(PATIENCE)
        ran.end(batch.id, {"one": answered(), "two": answered()})
        *_, (name, _) = events
    assert name == "batch.completed"

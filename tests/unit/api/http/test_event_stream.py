"""An event stream ends cleanly when the server stops or the client goes."""

import asyncio
from collections.abc import Mapping
from typing import Any

from xalen_batch.api.http.event_feed import Feed, State
from xalen_batch.api.http.event_stream import EventStream
from xalen_batch.ids import new

STATE = State(b'{"status":"in_progress"}', None)


def nothing(_: Any) -> Mapping[Any, State]:
    return {}


def sent_until(leave: str) -> list[dict[str, Any]]:
    """The messages of a stream that is left in this way after its first event."""

    async def run() -> list[dict[str, Any]]:
        feed, messages, first = Feed(nothing), [], asyncio.Event()
        stopping, gone = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)
            if message.get("body"):
                first.set()

        scope = {"type": "http", "method": "GET", "state": {"stopping": stopping}}
        stream = asyncio.create_task(
            EventStream(feed, new(), STATE, None)(scope, receive, send)  # type: ignore[arg-type]
        )
        await first.wait()
        {"stop": stopping, "go": gone}[leave].set()
        await stream
        assert not feed._following
        return messages

    return asyncio.run(run())


def test_it_ends_when_the_server_stops() -> None:
    start, event, end = sent_until("stop")
    assert start["status"] == 200
    assert b"event: progress\ndata: " + STATE.content in event["body"]
    assert end == {"type": "http.response.body"}


def test_it_ends_when_the_client_goes() -> None:
    assert sent_until("go")[-1] == {"type": "http.response.body"}

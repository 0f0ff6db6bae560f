"""Server-sent events of one batch: its state now, each change, and its end."""

import asyncio
from collections.abc import Coroutine
from typing import Any
from uuid import UUID

from fastapi import Response
from starlette.types import Receive, Scope, Send

from xalen_batch.api import deps
from xalen_batch.api.http import paths
from xalen_batch.api.http.event_feed import Feed, State, Subscription

# Seconds without an event after which a comment is sent, so that proxies keep the connection and
# clients notice a broken one.
HEARTBEAT = 10.0
# Seconds after which a stream ends; its client connects anew, and its key is checked again.
LONGEST = 600.0
# Without a blank line: OpenAI's clients would take that for an event without data.
COMMENT = b": heartbeat\n"
# Milliseconds after which browsers connect anew. A field of the first event, as it is no event.
RETRY = b"retry: 2000\n"
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    # nginx would buffer the stream.
    "x-accel-buffering": "no",
}


class EventStream(Response):
    """Sends a batch's state unless the client has it, then each change, until the batch has ended.

    `seen`: the `Last-Event-ID` of the client. The event loop thread calls it. It holds no thread
    and no database session. It ends when the client goes, the server stops, or LONGEST has passed.
    """

    def __init__(self, feed: Feed, batch_id: UUID, state: State, seen: str | None) -> None:
        super().__init__(headers=HEADERS)
        # Of a body that is streamed nobody knows the length.
        del self.headers["content-length"]
        self._feed = feed
        self._batch_id = batch_id
        self._state = state
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        owner = deps.caller_of(scope)
        with self._feed.following(self._batch_id, owner, self._state) as subscription:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            if paths.method(scope) != "HEAD":
                stopping: asyncio.Event = scope["state"]["stopping"]
                leaving = [_task(_gone(receive)), _task(stopping.wait())]
                try:
                    await self._follow(subscription, leaving, send)
                finally:
                    for task in leaving:
                        task.cancel()
            await send({"type": "http.response.body"})

    async def _follow(
        self, subscription: Subscription, leaving: list[asyncio.Task[Any]], send: Send
    ) -> None:
        ends = asyncio.get_running_loop().time() + LONGEST
        text = COMMENT
        if subscription.state.id != self._seen:
            text = RETRY + _event(subscription.state)
        while True:
            await send({"type": "http.response.body", "body": text, "more_body": True})
            if subscription.state.end is not None:
                return
            left = ends - asyncio.get_running_loop().time()
            changed = _task(subscription.changed.wait())
            done, _ = await asyncio.wait(
                (changed, *leaving),
                timeout=max(0.0, min(HEARTBEAT, left)),
                return_when=asyncio.FIRST_COMPLETED,
            )
            changed.cancel()
            if left <= 0 or done - {changed}:
                return
            text = COMMENT
            if subscription.changed.is_set():
                subscription.changed.clear()
                text = _event(subscription.state)


def _event(state: State) -> bytes:
    """`progress`, or of a batch that has ended OpenAI's name of the event: `batch.completed`."""
    name = "progress" if state.end is None else f"batch.{state.end}"
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (state.id.encode(), name.encode(), state.content)


async def _gone(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _task(awaited: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.ensure_future(awaited)

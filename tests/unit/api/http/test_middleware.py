"""Back-pressure: the slices of an answer that are handed to the connection at once."""

import asyncio
from typing import Any

from xalen_batch.api.http.middleware import AnswerSlices
from xalen_batch.api.http.responses import SLICE_BYTES


def sent(*bodies: bytes | memoryview) -> list[Any]:
    """The bodies that reach the connection, of an answer in these messages."""
    messages: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for number, body in enumerate(bodies, 1):
            await send(
                {"type": "http.response.body", "body": body, "more_body": number < len(bodies)}
            )

    async def send(message: Any) -> None:
        messages.append(message)

    asyncio.run(AnswerSlices(app)({"type": "http"}, None, send))  # type: ignore[arg-type]
    more = [message["more_body"] for message in messages]
    assert more == [True] * (len(more) - 1) + [False]
    return [message["body"] for message in messages]


def test_short_bodies_and_views_are_sent_as_they_are() -> None:
    body, view = bytes(SLICE_BYTES), memoryview(bytes(SLICE_BYTES + 1))
    found = sent(body, view, b"")
    assert found[0] is body
    assert found[1] is view


def test_longer_bodies_are_sent_in_slices() -> None:
    body = bytes(range(256)) * 4097
    for bodies in ((body,), (body, b"")):
        found = sent(*bodies)
        assert b"".join(found) == body
        assert max(map(len, found)) == SLICE_BYTES

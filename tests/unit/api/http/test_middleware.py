"""Back-pressure: the slices of an answer that are handed to the connection at once."""

import asyncio
from typing import Any

import pytest

from xalen_batch.api.http.middleware import SLICE_BYTES, AnswerSlices

LENGTH = [(b"content-length", b"9")]


def sent(headers: list[tuple[bytes, bytes]], *bodies: bytes) -> list[bytes | memoryview]:
    """The bodies that reach the connection, of an answer in these messages."""
    messages: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, body in enumerate(bodies, 1):
            await send(
                {"type": "http.response.body", "body": body, "more_body": number < len(bodies)}
            )

    async def send(message: Any) -> None:
        messages.append(message)

    asyncio.run(AnswerSlices(app)({"type": "http"}, None, send))  # type: ignore[arg-type]
    more = [message["more_body"] for message in messages[1:]]
    assert more == [True] * (len(more) - 1) + [False]
    return [message["body"] for message in messages[1:]]


@pytest.mark.parametrize("headers", [LENGTH, []])
def test_a_short_answer_is_sent_as_it_is(headers: list[tuple[bytes, bytes]]) -> None:
    body = bytes(SLICE_BYTES)
    assert sent(headers, body)[0] is body


def test_an_answer_of_known_length_is_not_copied_but_for_its_last_slice() -> None:
    body = bytes(range(256)) * 4096
    for bodies in ((body,), (body, b"")):
        view, rest = sent(LENGTH, *bodies)[:2]
        assert isinstance(view, memoryview)
        assert view.obj is body
        assert isinstance(rest, bytes)
        assert len(rest) == SLICE_BYTES
        assert bytes(view) + rest == body


def test_an_answer_of_unknown_length_is_sent_in_slices() -> None:
    body = bytes(range(256)) * 4097
    found = sent([], body, b"")
    assert b"".join(found) == body
    assert max(map(len, found)) == SLICE_BYTES

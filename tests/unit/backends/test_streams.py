"""Server-sent events as bytes and back."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from xalen_batch.backends.contract import Event, StreamBroken
from xalen_batch.backends.streams import DONE, parsed, rendered

TOLD = [Event(b'{"n":1}'), Event(b'{"n":2}', "response.created"), Event(b'{"n":3}')]
BODY = b"".join(map(rendered, TOLD))


def read(*chunks: bytes, longest: int = 100) -> list[Event]:
    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def main() -> list[Event]:
        return [event async for event in parsed(body(), longest)]

    return asyncio.run(main())


@pytest.mark.parametrize("size", [1, 7, len(BODY)])
def test_events_are_read_as_they_were_written(size: int) -> None:
    pieces = [BODY[start : start + size] for start in range(0, len(BODY), size)]
    assert read(*pieces) == TOLD


def test_done_ends_the_events() -> None:
    assert read(BODY, rendered(Event(DONE)), b"data: x") == TOLD


@pytest.mark.parametrize("body", [BODY + b"data: {", b"<html>", b"data: " + b"x" * 200])
def test_what_is_no_stream_is_broken(body: bytes) -> None:
    with pytest.raises(StreamBroken):
        read(body)

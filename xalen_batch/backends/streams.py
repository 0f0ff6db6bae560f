"""Streamed answers: server-sent events of a model, as they arrive.

A backend opens a stream as it runs a request: the result is the stream, or the outcome of a request
that got none. What goes wrong later raises StreamBroken.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from xalen_batch.backends.contract import (
    Answered,
    Event,
    Events,
    Outcome,
    Refused,
    Retryable,
    StreamBroken,
)

DONE = b"[DONE]"


async def parsed(chunks: AsyncIterator[bytes], longest: int) -> Events:
    """The events of a body in the format of server-sent events, without the last, DONE.

    Raises StreamBroken for an event of more than `longest` bytes, and for a body that is no stream.
    """
    rest, data, name = b"", b"", None
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) + len(data) > longest:
            raise StreamBroken("an event is too long")
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                data += line[5:].lstrip(b" ")
            elif line.startswith(b"event:"):
                name = line[6:].strip().decode("utf-8", "replace")
            elif not line and data:
                if data == DONE:
                    return
                yield Event(data, name)
                data, name = b"", None
    if rest.strip() or data:
        raise StreamBroken("it ended in the middle of an event")


def rendered(event: Event) -> bytes:
    """An event in the format of server-sent events."""
    name = f"event: {event.name}\n".encode() if event.name else b""
    return name + b"data: " + event.data + b"\n\n"


@asynccontextmanager
async def opened(
    outcome: Outcome, events: Iterable[Mapping[str, Any]], *, seconds: float = 0.0
) -> AsyncIterator[Events | Refused | Retryable]:
    """A stream of events that are all here, with pauses of `seconds` in all between them.

    An outcome without an answer as it is.
    """
    if isinstance(outcome, Answered):
        yield _told(list(events), seconds)
    else:
        yield outcome


async def _told(events: Sequence[Mapping[str, Any]], seconds: float) -> Events:
    for event in events:
        await asyncio.sleep(seconds / len(events))
        yield Event(msgspec.json.encode(event))

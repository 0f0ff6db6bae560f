"""Responses through a backend that only has chat completions."""

import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from xalen_batch.backends.contract import (
    Answered,
    Backend,
    Event,
    Events,
    Outcome,
    Refused,
    Request,
    Retryable,
)
from xalen_batch.backends.outcomes import envelope
from xalen_batch.backends.usage import EXTENSION, usage_of
from xalen_batch.endpoints.names import CHAT, RESPONSES
from xalen_batch.endpoints.response_events import ResponseEvents
from xalen_batch.endpoints.responses_chat import InvalidItem, from_chat, to_chat
from xalen_batch.endpoints.whole import decoded, whole


class ResponsesChat:
    """A backend with chat completions that takes responses as well."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    def send(self, request: Request) -> Coroutine[Any, Any, Outcome]:
        """Run one request; a Response is sent as a chat, and the completion returned as one."""
        # No coroutine of our own around the usual request: it would cost each line.
        is_response = request.endpoint == RESPONSES
        return self._respond(request) if is_response else self.inner.send(request)

    async def _respond(self, request: Request) -> Outcome:
        try:
            chat = to_chat(whole(decoded(request.body)))
        except InvalidItem as invalid:
            return refused(invalid)
        outcome = await self.inner.send(
            Request(CHAT, msgspec.json.encode(chat), request.request_id)
        )
        if isinstance(outcome, Answered):
            return Answered(outcome.status, to_response(outcome, request), outcome.usage)
        return outcome

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Events | Refused | Retryable]:
        """As `send`; the chunks of a chat are returned as the events of a Response."""
        if request.endpoint != RESPONSES:
            async with self.inner.open(request) as stream:
                yield stream
            return
        asked = whole(decoded(request.body))
        try:
            chat = {**to_chat(asked), "stream_options": {"include_usage": True}}
        except InvalidItem as invalid:
            yield refused(invalid)
            return
        inner = Request(CHAT, msgspec.json.encode(chat), request.request_id)
        async with self.inner.open(inner) as stream:
            if isinstance(stream, Refused | Retryable):
                yield stream
            else:
                yield _events(stream, asked, inner)

    async def close(self) -> None:
        await self.inner.close()


async def _events(stream: Events, asked: Mapping[str, Any], request: Request) -> Events:
    told, size = ResponseEvents(asked, request.request_id, int(time.time())), 0
    for event in told.begin():
        yield _encoded(event)
    async for chunk in stream:
        size += len(chunk.data)
        for event in told.add(decoded(chunk.data)):
            yield _encoded(event)
    usage = usage_of(told.joined.completion, size, request)
    for event in told.end(usage):
        yield _encoded(event)


def _encoded(event: tuple[str, dict[str, Any]]) -> Event:
    name, fields = event
    return Event(msgspec.json.encode(fields), name)


def to_response(answer: Answered, request: Request) -> bytes:
    """Return a chat completion as the Response of a request, on one line."""
    completion = msgspec.json.decode(answer.body)
    response = from_chat(completion, decoded(request.body), request.request_id, answer.usage)
    response |= {
        key: completion[key] for key in ("system_fingerprint", EXTENSION) if key in completion
    }
    # The request's whole numbers may have more than 64 bits, which orjson does not write.
    return msgspec.json.encode(response)


def refused(invalid: InvalidItem) -> Refused:
    """The error of a request that no chat completion can stand for."""
    body = invalid.body
    return Refused(
        400, envelope(400, body.message, param=body.param.removeprefix("body."), code=None)
    )

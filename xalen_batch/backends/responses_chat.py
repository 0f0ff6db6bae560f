"""Responses through a backend that only has chat completions."""

from collections.abc import Coroutine
from typing import Any

import msgspec
import orjson

from xalen_batch.backends.contract import Answered, Backend, Outcome, Refused, Request
from xalen_batch.backends.outcomes import envelope
from xalen_batch.backends.usage import EXTENSION
from xalen_batch.endpoints.names import CHAT, RESPONSES
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

    async def close(self) -> None:
        await self.inner.close()


def to_response(answer: Answered, request: Request) -> bytes:
    """Return a chat completion as the Response of a request, on one line."""
    completion = msgspec.json.decode(answer.body)
    response = from_chat(completion, decoded(request.body), request.request_id, answer.usage)
    response |= {
        key: completion[key] for key in ("system_fingerprint", EXTENSION) if key in completion
    }
    return orjson.dumps(response)


def refused(invalid: InvalidItem) -> Refused:
    """The error of a request that no chat completion can stand for."""
    body = invalid.body
    return Refused(
        400, envelope(400, body.message, param=body.param.removeprefix("body."), code=None)
    )

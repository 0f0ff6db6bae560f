"""Rerankers through `/v1/chat/completions`, so a chat client changes only the model's name.

The last user message carries `{"query", "documents", "top_n"?}` as JSON; the answer is an ordinary
chat completion whose content is the ranked `results` as JSON.
"""

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import orjson

from xalen_batch.backends import streams
from xalen_batch.backends.contract import (
    Answered,
    Backend,
    Events,
    Outcome,
    Refused,
    Request,
    Retryable,
)
from xalen_batch.backends.outcomes import envelope
from xalen_batch.backends.usage import EXTENSION
from xalen_batch.endpoints import chunks
from xalen_batch.endpoints.names import CHAT, RERANK
from xalen_batch.endpoints.rerank_chat import query_of

SHAPE = '{"query": "…", "documents": ["…", "…"], "top_n": 3}'


class RerankChat:
    """A reranker's backend that takes chat completions as well."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    async def send(self, request: Request) -> Outcome:
        """Run one request; a chat is sent as a rerank, and the ranking returned as a chat."""
        if request.endpoint != CHAT:
            return await self.inner.send(request)
        body = to_rerank(request.body)
        if isinstance(body, Refused):
            return body
        outcome = await self.inner.send(Request(RERANK, body, request.request_id))
        if isinstance(outcome, Answered):
            return Answered(outcome.status, to_chat(outcome, request), outcome.usage)
        return outcome

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Events | Refused | Retryable]:
        """As `send`. A ranking is whole when it begins."""
        outcome = await self.send(request)
        events: Iterable[dict[str, Any]] = ()
        if isinstance(outcome, Answered):
            events = chunks.of_completion(msgspec.json.decode(outcome.body))
        async with streams.opened(outcome, events) as stream:
            yield stream

    async def close(self) -> None:
        await self.inner.close()


def to_rerank(body: bytes) -> bytes | Refused:
    """Return the rerank request in a chat's last user message, or a 400 that shows its form."""
    chat = msgspec.json.decode(body)
    asked = query_of(chat) if isinstance(chat, dict) else "the request is not a JSON object"
    return _refused(asked) if isinstance(asked, str) else msgspec.json.encode(asked)


def to_chat(answer: Answered, request: Request) -> bytes:
    """Return a rerank answer as a chat completion, which has no output tokens."""
    ranking = msgspec.json.decode(answer.body)
    usage = answer.usage
    message = {
        "role": "assistant",
        "content": msgspec.json.encode({"results": ranking["results"]}).decode(),
        "refusal": None,
    }
    completion = {
        "id": f"chatcmpl-{request.request_id}",
        "object": "chat.completion",
        "created": ranking.get("created") or int(time.time()),
        "model": msgspec.json.decode(request.body).get("model"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": 0,
            "total_tokens": usage.input_tokens,
        },
    }
    completion |= {key: ranking[key] for key in ("system_fingerprint", EXTENSION) if key in ranking}
    return orjson.dumps(completion)


def _refused(problem: str) -> Refused:
    message = f"A reranker's last user message must be a JSON object like {SHAPE}: {problem}."
    return Refused(400, envelope(400, message, param="messages", code="invalid_rerank_message"))

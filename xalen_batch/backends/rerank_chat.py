"""Rerankers through `/v1/chat/completions`, so a chat client changes only the model's name.

The last user message carries `{"query", "documents", "top_n"?}` as JSON; the answer is an ordinary
chat completion whose content is the ranked `results` as JSON.
"""

import time
from typing import Any

import msgspec
import orjson

from xalen_batch.backends.contract import Answered, Backend, Outcome, Refused, Request
from xalen_batch.backends.outcomes import envelope
from xalen_batch.backends.usage import EXTENSION
from xalen_batch.backends.whole import whole
from xalen_batch.catalog import CHAT, RERANK

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

    async def close(self) -> None:
        await self.inner.close()


def to_rerank(body: bytes) -> bytes | Refused:
    """Return the rerank request in a chat's last user message, or a 400 that shows its form."""
    chat = msgspec.json.decode(body)
    if not isinstance(chat, dict):
        return _refused("the request is not a JSON object")
    content = _last_user_content(chat.get("messages"))
    if content is None:
        return _refused("there is no user message with text")
    try:
        asked = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _refused("the message is not JSON")
    if not isinstance(asked, dict):
        return _refused("the message is not a JSON object")
    asked = whole(asked)
    problem = problem_of(asked)
    return (
        _refused(problem) if problem else msgspec.json.encode({**asked, "model": chat.get("model")})
    )


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


def problem_of(asked: dict[str, Any]) -> str | None:
    """The first error of a rerank request, without a period; None if the request is valid."""
    documents, top_n = asked.get("documents"), asked.get("top_n")
    if not isinstance(asked.get("query"), str) or not asked["query"]:
        return "`query` must be a text"
    if (
        not isinstance(documents, list)
        or not documents
        or not all(_is_document(document) for document in documents)
    ):
        return "`documents` must be a list of texts or of objects with `text`"
    if top_n is not None and (not isinstance(top_n, int) or isinstance(top_n, bool) or top_n < 1):
        return "`top_n` must be a whole number of at least 1"
    if not isinstance(asked.get("return_documents"), bool | None):
        return "`return_documents` must be true or false"
    if asked.get("stream") is not None and asked["stream"] is not False:
        return "`stream` must be left out, or false: a batch has no stream"
    return None


def _is_document(document: Any) -> bool:
    return isinstance(document.get("text") if isinstance(document, dict) else document, str)


def _last_user_content(messages: Any) -> str | None:
    """The text of the last user message, whose content is a string or a list of text parts."""
    if not isinstance(messages, list):
        return None
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                return (
                    "".join(
                        part["text"]
                        for part in content
                        if isinstance(part, dict) and isinstance(part.get("text"), str)
                    )
                    or None
                )
            return content if isinstance(content, str) else None
    return None


def _refused(problem: str) -> Refused:
    message = f"A reranker's last user message must be a JSON object like {SHAPE}: {problem}."
    return Refused(400, envelope(400, message, param="messages", code="invalid_rerank_message"))

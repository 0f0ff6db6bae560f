"""Requests to the simulated models, and the parts of their answers."""

from typing import Any

import orjson

from xalen_batch import catalog
from xalen_batch.backends.contract import Request
from xalen_batch.backends.simulated.faults import Attempts
from xalen_batch.backends.simulated.model import Answer, answer
from xalen_batch.endpoints.names import CHAT, RERANK

MODELS = catalog.read(None)
MISTRAL, BGE = MODELS["mistral-small-3-1"], MODELS["bge-reranker-v2"]
USER = {"role": "user", "content": "My card was charged twice on this invoice."}


def ask(request_id: str = "r", attempts: Attempts | None = None, **body: Any) -> Answer:
    asked = {"model": MISTRAL.id, "messages": [USER], **body}
    return answer(MISTRAL, Request(CHAT, orjson.dumps(asked), request_id), attempts=attempts)


def completion(**body: Any) -> Any:
    """The answer to a chat, which succeeds."""
    reply = ask(**body)
    assert reply.status == 200, reply.body
    return orjson.loads(reply.body)


def choice(**body: Any) -> Any:
    """The only choice of the answer."""
    (only,) = completion(**body)["choices"]
    return only


def content(**body: Any) -> str:
    return str(choice(**body)["message"]["content"])


def said(text: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages with a text of the user."""
    instructions = [{"role": "system", "content": system}] if system else []
    return [*instructions, {"role": "user", "content": text}]


def fault(reply: Answer) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(reply.body)["error"]
    return found


def error(reply: Answer) -> tuple[int, str | None, str | None]:
    found = fault(reply)
    return reply.status, found["code"], found["param"]


def rank(query: str, documents: list[Any], **body: Any) -> Answer:
    asked = {"model": BGE.id, "query": query, "documents": documents, **body}
    return answer(BGE, Request(RERANK, orjson.dumps(asked), "r"))

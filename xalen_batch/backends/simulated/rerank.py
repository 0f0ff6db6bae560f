"""The simulated reranker's answers, at its own endpoint and through chat completions."""

from typing import Any

import msgspec
import orjson

from xalen_batch.backends.contract import Answered, Refused, Request
from xalen_batch.backends.rerank_chat import to_chat, to_rerank
from xalen_batch.backends.simulated.constants import CREATED, FINGERPRINT
from xalen_batch.backends.simulated.ranking import relevance
from xalen_batch.backends.simulated.refusal import Refusal
from xalen_batch.catalog import Model
from xalen_batch.endpoints import tokens
from xalen_batch.endpoints.rerank_chat import problem_of
from xalen_batch.endpoints.usage import Usage


def ranked(model: Model, body: dict[str, Any], digest: bytes) -> dict[str, Any]:
    """The answer to a rerank request."""
    problem = problem_of(body)
    if problem:
        raise Refusal(f"{problem[0].upper()}{problem[1:]}." if problem[0] != "`" else f"{problem}.")
    query, texts = body["query"], [tokens.text_of(document) for document in body["documents"]]
    longest = tokens.count(query) + max(map(tokens.count, texts)) + tokens.PER_PAIR
    if longest > model.context_window:
        raise Refusal(
            f"This model's maximum context length is {model.context_window} tokens, and the query"
            f" with the longest document has {longest}.",
            code="context_length_exceeded",
            param="documents",
        )
    order = sorted(enumerate(relevance(query, texts)), key=lambda pair: (-pair[1], pair[0]))
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": score} for index, score in order[: body.get("top_n")]
    ]
    if body.get("return_documents"):
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    read = tokens.count_rerank(query, texts)
    return {
        "id": f"rerank-{digest.hex()}",
        "model": body.get("model"),
        "results": results,
        "usage": {"prompt_tokens": read, "total_tokens": read},
        "created": CREATED,
        "system_fingerprint": FINGERPRINT,
    }


def ranked_chat(model: Model, request: Request, digest: bytes) -> dict[str, Any]:
    """A reranker's answer to a chat over HTTP. In a worker, RerankChat translates the chat."""
    body = to_rerank(request.body)
    if isinstance(body, Refused):
        refused = msgspec.json.decode(body.body)["error"]
        raise Refusal(
            refused["message"], status=body.status, code=refused["code"], param=refused["param"]
        )
    ranking = ranked(model, msgspec.json.decode(body), digest)
    usage = Usage(ranking["usage"]["prompt_tokens"])
    completion: dict[str, Any] = msgspec.json.decode(
        to_chat(Answered(200, orjson.dumps(ranking), usage), request)
    )
    return completion

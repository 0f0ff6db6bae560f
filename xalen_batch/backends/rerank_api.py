"""Translate rerank requests and answers between our shape (that of Jina and vLLM) and a server's.

| `rerank_api` | request | answer |
|---|---|---|
| `jina` | `{model, query, documents, top_n, …}` as the user wrote it | `{results: [{index, relevance_score, …}], usage}` |
| `cohere` | `{model, query, documents: [str], top_n}` | `{results: [{index, relevance_score}], meta}` |
| `tei` | `{query, texts, return_text: false}` | `[{index, score}]` |

Documents are always sent as strings. If a request asks for them in the answer, we insert them.
"""

import math
from typing import Any, Literal

import msgspec

from xalen_batch.backends.contract import Request
from xalen_batch.endpoints.tokens import text_of

RerankApi = Literal["jina", "cohere", "tei"]


class Unusable(ValueError):
    """The answer is no ranking of the request's documents; the message says why."""


def to_backend(api: RerankApi, body: dict[str, Any], model: str) -> bytes:
    """Encode a request in the server's shape."""
    texts = [text_of(document) for document in body["documents"]]
    if api == "tei":
        return msgspec.json.encode({"query": body["query"], "texts": texts, "return_text": False})
    if api == "cohere":
        top_n = {"top_n": body["top_n"]} if body.get("top_n") else {}
        return msgspec.json.encode(
            {"model": model, "query": body["query"], "documents": texts, **top_n}
        )
    return msgspec.json.encode({**body, "model": model, "documents": texts})


def from_backend(answer: Any, request: Request, body: dict[str, Any]) -> dict[str, Any]:
    """Return an answer of any shape as `{id, model, results, usage?, meta?}`, best score first.

    Raises Unusable for an answer that does not rank the request's documents.
    """
    rows = answer.get("results") if isinstance(answer, dict) else answer
    if not isinstance(rows, list):
        raise Unusable("The backend's answer has no `results`.")
    documents = body["documents"]
    ranked = [_result(row, len(documents)) for row in rows]
    if len({index for _, index in ranked}) < len(ranked) or (documents and not ranked):
        raise Unusable("The backend's answer ranks nothing, or a document twice.")
    ranked.sort(key=lambda pair: (-pair[0], pair[1]))
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": score} for score, index in ranked[: body.get("top_n")]
    ]
    if body.get("return_documents"):
        for result in results:
            result["document"] = {"text": text_of(documents[result["index"]])}
    kept = {
        key: answer[key] for key in ("usage", "meta") if isinstance(answer, dict) and key in answer
    }
    return {
        "id": f"rerank-{request.request_id}",
        "model": body.get("model"),
        "results": results,
        **kept,
    }


def _result(row: Any, documents: int) -> tuple[float, int]:
    if isinstance(row, dict):
        index, score = row.get("index"), _score(row.get("relevance_score", row.get("score")))
        if (
            isinstance(index, int)
            and not isinstance(index, bool)
            and 0 <= index < documents
            and score is not None
        ):
            return score, index
    raise Unusable(
        "The backend's answer has a result that is no `{index, relevance_score}` of a document."
    )


def _score(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None

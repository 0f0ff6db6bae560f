"""`client.rerank.create` sends the wire's request and gives a typed answer."""

import asyncio
import json

import httpx2
import openai
import pytest

from xalen import XALEN, AsyncXALEN

ANSWER = {
    "id": "rerank-1",
    "model": "bge-reranker-v2",
    "results": [
        {"index": 1, "relevance_score": 0.9, "document": {"text": "b"}},
        {"index": 0, "relevance_score": 0.1, "document": {"text": "a"}},
    ],
    "usage": {"prompt_tokens": 7, "total_tokens": 7},
}
BODY = {
    "model": "bge-reranker-v2",
    "query": "q",
    "documents": ["a", {"text": "b"}],
    "top_n": 2,
    "return_documents": True,
}


def answering(request: httpx2.Request) -> httpx2.Response:
    assert (request.method, str(request.url)) == ("POST", "http://stub/v1/rerank?trace=1")
    assert request.headers["x-own"] == "own"
    assert json.loads(request.content) == {**BODY, "truncate": "END"}
    return httpx2.Response(200, json=ANSWER)


def test_documents_are_ranked() -> None:
    http = httpx2.Client(transport=httpx2.MockTransport(answering))
    client = XALEN(api_key="xln_test_a", base_url="http://stub", http_client=http)
    ranked = client.rerank.create(
        model="bge-reranker-v2",
        query="q",
        documents=["a", {"text": "b"}],
        top_n=2,
        return_documents=True,
        extra_headers={"x-own": "own"},
        extra_query={"trace": 1},
        extra_body={"truncate": "END"},
        timeout=3,
    )
    best = ranked.results[0]
    assert (best.index, best.relevance_score, best.document and best.document.text) == (1, 0.9, "b")
    assert ranked.usage is not None
    assert ranked.usage.total_tokens == 7


def test_documents_are_ranked_asynchronously() -> None:
    async def main() -> None:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(answering))
        client = AsyncXALEN(api_key="xln_test_a", base_url="http://stub", http_client=http)
        ranked = await client.rerank.create(
            model="bge-reranker-v2",
            query="q",
            documents=["a", {"text": "b"}],
            top_n=2,
            return_documents=True,
            extra_headers={"x-own": "own"},
            extra_query={"trace": 1},
            extra_body={"truncate": "END"},
        )
        assert [result.index for result in ranked.results] == [1, 0]

    asyncio.run(main())


def test_an_error_is_one_of_openai() -> None:
    def refusing(_: httpx2.Request) -> httpx2.Response:
        error = {
            "message": "no such model",
            "type": "t",
            "param": "model",
            "code": "model_not_found",
        }
        return httpx2.Response(404, json={"error": error})

    http = httpx2.Client(transport=httpx2.MockTransport(refusing))
    client = XALEN(api_key="xln_test_a", base_url="http://stub", http_client=http)
    with pytest.raises(openai.NotFoundError, match="no such model") as caught:
        client.rerank.create(model="m", query="q", documents=[])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")

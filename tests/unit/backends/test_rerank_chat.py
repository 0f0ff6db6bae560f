"""The reranker through chat completions."""

import asyncio
from typing import Any

import orjson
import pytest

from xalen_batch.backends.contract import Answered, Outcome, Refused, Request, Retryable
from xalen_batch.backends.rerank_chat import RerankChat, to_rerank
from xalen_batch.endpoints.names import CHAT, RERANK
from xalen_batch.endpoints.usage import Usage

RANKING = {"query": "reset", "documents": ["a", {"text": "b"}], "top_n": 1}
RESULTS = [{"index": 1, "relevance_score": 0.8}]


def chat(content: Any, *before: dict[str, Any]) -> bytes:
    return orjson.dumps(
        {"model": "bge-reranker-v2", "messages": [*before, {"role": "user", "content": content}]}
    )


class Inner:
    """A backend that records its requests."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.sent: list[Request] = []

    async def send(self, request: Request) -> Outcome:
        self.sent.append(request)
        return self.outcome

    async def close(self) -> None:
        self.sent.clear()


RANKED = Answered(200, orjson.dumps({"id": "x", "results": RESULTS}), Usage(12))


def test_the_last_user_message_is_the_rerank_request() -> None:
    before = {"role": "user", "content": "ignored"}
    body = to_rerank(
        chat(orjson.dumps(RANKING).decode(), {"role": "system", "content": "rank"}, before)
    )
    assert isinstance(body, bytes)
    assert orjson.loads(body) == {**RANKING, "model": "bge-reranker-v2"}


def test_a_whole_number_is_one_in_every_spelling() -> None:
    body = to_rerank(chat(orjson.dumps({**RANKING, "top_n": 1.0}).decode()))
    assert isinstance(body, bytes)
    assert b'"top_n":1,' in body


def test_text_parts_are_joined() -> None:
    text = orjson.dumps(RANKING).decode()
    body = to_rerank(
        chat([{"type": "text", "text": text[:10]}, {"type": "text", "text": text[10:]}])
    )
    assert isinstance(body, bytes)
    assert orjson.loads(body)["query"] == "reset"


@pytest.mark.parametrize(
    "content",
    [
        "when do I get my refund",
        "[]",
        "{}",
        '{"query":"q"}',
        '{"query":"","documents":["a"]}',
        '{"query":"q","documents":[]}',
        '{"query":"q","documents":[1]}',
        '{"query":"q","documents":[{"title":"a"}]}',
        '{"query":"q","documents":["a"],"top_n":0}',
        '{"query":"q","documents":["a"],"top_n":true}',
        "[" * 100_000,
        None,
        [{"type": "image_url", "image_url": {"url": "x"}}],
    ],
)
def test_anything_else_is_refused_with_the_shape_that_is_expected(content: Any) -> None:
    refused = to_rerank(chat(content))
    assert isinstance(refused, Refused)
    error = orjson.loads(refused.body)["error"]
    assert refused.status == 400
    assert error["code"] == "invalid_rerank_message"
    assert '{"query": "…", "documents": ["…", "…"], "top_n": 3}' in error["message"]


@pytest.mark.parametrize("messages", [None, [], [{"role": "system", "content": "x"}], ["x"], {}])
def test_no_user_message_is_refused(messages: Any) -> None:
    assert isinstance(to_rerank(orjson.dumps({"messages": messages})), Refused)


def test_the_answer_is_an_ordinary_completion_with_the_results_as_json() -> None:
    inner = Inner(RANKED)
    outcome = asyncio.run(
        RerankChat(inner).send(Request(CHAT, chat(orjson.dumps(RANKING).decode()), "req_1"))
    )
    assert inner.sent[0].endpoint == RERANK
    assert inner.sent[0].request_id == "req_1"
    assert isinstance(outcome, Answered)
    assert outcome.usage == Usage(12)
    completion = orjson.loads(outcome.body)
    assert completion["object"] == "chat.completion"
    assert completion["model"] == "bge-reranker-v2"
    assert completion["usage"] == {"prompt_tokens": 12, "completion_tokens": 0, "total_tokens": 12}
    (choice,) = completion["choices"]
    assert choice["finish_reason"] == "stop"
    assert orjson.loads(choice["message"]["content"]) == {"results": RESULTS}


@pytest.mark.parametrize("outcome", [Refused(400, b"{}"), Retryable("busy", 503)])
def test_other_outcomes_pass_through(outcome: Outcome) -> None:
    assert (
        asyncio.run(
            RerankChat(Inner(outcome)).send(
                Request(CHAT, chat(orjson.dumps(RANKING).decode()), "r")
            )
        )
        == outcome
    )


def test_a_rerank_passes_through() -> None:
    request = Request(RERANK, orjson.dumps(RANKING), "r")
    inner = Inner(RANKED)
    assert asyncio.run(RerankChat(inner).send(request)) == RANKED
    assert inner.sent == [request]

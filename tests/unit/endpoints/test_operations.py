"""The schema of a body at each endpoint, and the param of each error."""

import orjson
import pytest

from xalen_batch.endpoints.chat import ROLES, ChatRequest
from xalen_batch.endpoints.form import InvalidBody
from xalen_batch.endpoints.names import CHAT, RERANK
from xalen_batch.endpoints.operations import fit
from xalen_batch.endpoints.rerank import RerankRequest
from xalen_batch.endpoints.rerank_chat import RankingChat

HELLO = {"role": "user", "content": "Hello"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def chat(*messages, **values):
    return {"model": "m", "messages": list(messages) or [HELLO], **values}


def rerank(**values):
    body = {"model": "m", "query": "q", "documents": ["a"], **values}
    return {key: value for key, value in body.items() if value is not ...}


@pytest.mark.parametrize(
    "body",
    [
        chat(),
        chat(*({"role": role, "content": "x"} for role in ROLES)),
        chat(
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "x"},
                    {"type": "image_url", "image_url": {"url": "https://e.org/a.png"}},
                ],
            }
        ),
        chat(
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "1", "tool_call_id": "c"},
        ),
        chat({"role": "assistant", "tool_calls": [CALL]}),
        chat({"role": "assistant", "content": None, "refusal": "no"}),
        chat({"role": "user", "content": ""}),
        chat(
            n=2,
            max_tokens=1,
            temperature=2,
            top_p=0.5,
            stream=False,
            presence_penalty=-2,
            seed=7,
            anything={"a": [1]},
        ),
        chat(n=None, max_tokens=None, temperature=None, stream=None),
        chat(n=2.0, max_tokens=256.0, max_completion_tokens=1e2),
    ],
)
def test_chats_that_fit(body):
    assert isinstance(fit(body, CHAT, is_reranker=False), ChatRequest)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"model": "m"}, "body.messages", "`messages` is missing"),
        ({"model": "m", "messages": []}, "body.messages", 'Send a list such as [{"role"'),
        ({"model": "m", "messages": "Hello"}, "body.messages", "got `string`"),
        (chat(HELLO, "Hello"), "body.messages[1]", "Expected `object`"),
        (chat({"content": "x"}), "body.messages[0].role", "developer, system, user"),
        (chat({"role": "robot", "content": "x"}), "body.messages[0].role", "'robot' is not a role"),
        (
            chat(HELLO, HELLO, {"role": "user", "content": 3}),
            "body.messages[2].content",
            "got `whole number`",
        ),
        (chat({"role": "user"}), "body.messages[0].content", "Give the message a `content`"),
        (
            chat({"role": "user", "content": None}),
            "body.messages[0].content",
            "Give the message a `content`",
        ),
        (chat({"role": "assistant", "content": None}), "body.messages[0].content", "tool calls"),
        (
            chat({"role": "assistant", "content": None, "tool_calls": []}),
            "body.messages[0].content",
            "tool calls",
        ),
        (chat({"role": "user", "content": []}), "body.messages[0].content", "length >= 1"),
        (
            chat({"role": "user", "content": [{"text": "x"}]}),
            "body.messages[0].content[0].type",
            "`type` is missing",
        ),
        (
            chat({"role": "user", "content": [{"type": "text"}]}),
            "body.messages[0].content[0].text",
            "needs its `text`",
        ),
        (chat(n=0), "body.n", ">= 1"),
        (chat(n=True), "body.n", "got `boolean`"),
        (chat(max_tokens=0), "body.max_tokens", ">= 1"),
        (chat(max_tokens="5"), "body.max_tokens", "got `string`"),
        (chat(max_completion_tokens=1.5), "body.max_completion_tokens", "whole number"),
        (chat(max_tokens=0.0), "body.max_tokens", ">= 1"),
        (chat(max_tokens=1e300), "body.max_tokens", ""),
        (chat(n=129.0), "body.n", "<= 128"),
        (chat(temperature=2.1), "body.temperature", "<= 2"),
        (chat(temperature="warm"), "body.temperature", "number"),
        (chat(top_p=-0.1), "body.top_p", ">= 0"),
        (chat(stream="yes"), "body.stream", "a batch has no stream"),
    ],
)
def test_chats_that_do_not_fit_say_where(body, param, message):
    found = fit(body, CHAT, is_reranker=False)
    assert isinstance(found, InvalidBody)
    assert found.param == param
    assert message in found.message
    assert found.message.endswith((".", "]."))


def test_a_whole_number_is_read_as_one_in_every_spelling():
    found = fit(
        orjson.loads(
            b'{"model":"m","messages":[{"role":"user","content":"x"}],"n":2.0,"max_tokens":1e2}'
        ),
        CHAT,
        is_reranker=False,
    )
    assert isinstance(found, ChatRequest)
    assert (found.choices, found.longest_answer) == (2, 100)
    assert all(type(value) is int for value in (found.n, found.max_tokens))


@pytest.mark.parametrize(
    "body",
    [
        rerank(),
        rerank(documents=["a", {"text": "b", "id": 3}], top_n=9, return_documents=True),
        rerank(top_n=None),
        rerank(top_n=2.0),
    ],
)
def test_reranks_that_fit(body):
    assert isinstance(fit(body, RERANK, is_reranker=True), RerankRequest)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (rerank(query=...), "body.query", "`query` is missing"),
        (rerank(query=""), "body.query", "not empty"),
        (rerank(query=["q"]), "body.query", "search query as a string"),
        (rerank(documents=...), "body.documents", "`documents` is missing"),
        (rerank(documents=[]), "body.documents", "length >= 1"),
        (rerank(documents="a"), "body.documents", "Send a list of strings"),
        (rerank(documents=["a", 3]), "body.documents[1]", "got `whole number`"),
        (rerank(documents=[{"title": "a"}]), "body.documents[0].text", '{"text": "…"}'),
        (rerank(top_n=0), "body.top_n", "at least one"),
        (rerank(top_n=1.5), "body.top_n", "whole number"),
        (rerank(return_documents="yes"), "body.return_documents", "boolean"),
    ],
)
def test_reranks_that_do_not_fit_say_where(body, param, message):
    found = fit(body, RERANK, is_reranker=True)
    assert isinstance(found, InvalidBody)
    assert found.param == param
    assert message in found.message


def test_a_chat_to_a_reranker_carries_its_query_and_documents():
    asked = fit(
        chat({"role": "user", "content": '{"query":"q","documents":["a",{"text":"b"}]}'}),
        CHAT,
        is_reranker=True,
    )
    assert isinstance(asked, RankingChat)
    assert (asked.ranking.query, asked.ranking.texts) == ("q", ["a", "b"])
    assert fit(chat(), CHAT, is_reranker=True).ranking is None

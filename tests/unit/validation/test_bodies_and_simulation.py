"""Validation and the simulated models agree: a body that passes validation is answered, and fits the
schema of its line.

Some refusals stay with the model, as with a real server: a request beyond its context window, a
chat to a reranker whose message is no rerank request, and invalid values of parameters that decide
the form of an answer (`response_format`, `tools`, `logprobs` and those beside them), which
validation lets through unchecked. They are drawn valid here.
"""

from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import chat_line, rerank_line
from xalen_batch import catalog
from xalen_batch.api import line_schemas
from xalen_batch.backends.contract import Request
from xalen_batch.backends.simulated.model import answer
from xalen_batch.backends.simulated.parameters import IGNORED
from xalen_batch.endpoints import chat
from xalen_batch.endpoints.form import InvalidBody
from xalen_batch.endpoints.names import CHAT, RERANK, Endpoint
from xalen_batch.endpoints.operations import fit

SCHEMA = jsonschema.Draft202012Validator(line_schemas.batch_line())
MODELS = catalog.read(None)
MISTRAL, BGE = MODELS["mistral-small-3-1"], MODELS["bge-reranker-v2"]
# Parameters that the simulated models follow, or refuse as validation does.
FOLLOWED = {
    "model",
    "messages",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "response_format",
    "stream",
}

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
ODD = (
    st.none()
    | st.booleans()
    | st.integers(-3, 200)
    | st.floats(-3, 200)
    | TEXT
    | st.lists(TEXT, max_size=2)
    | st.just({})
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_audio", "file", "x"])},
    optional={
        "text": TEXT,
        "image_url": ODD,
        "input_audio": st.fixed_dictionaries({"data": TEXT}) | ODD,
        "file": ODD,
    },
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from([*chat.ROLES, "robot"])},
    optional={
        "content": st.none() | TEXT | st.lists(PARTS, max_size=3),
        "name": ODD,
        "tool_calls": st.lists(st.just({"id": "1"}), max_size=1),
        "refusal": st.none() | TEXT,
        "function_call": st.none() | st.just({}),
        "tool_call_id": ODD,
    },
)
SCHEMAS = st.sampled_from(
    [{}, {"type": "object", "properties": {"a": {"type": "integer"}}}, {"enum": ["a", "b"]}]
)
FORMATS = st.sampled_from([None, {"type": "text"}, {"type": "json_object"}]) | SCHEMAS.map(
    lambda schema: {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
)
TOOLS = st.lists(
    st.just({"type": "function", "function": {"name": "look_up", "description": "any text"}}),
    min_size=1,
    max_size=2,
)
CHATS = st.fixed_dictionaries(
    {"model": st.just(MISTRAL.id), "messages": st.lists(MESSAGES, max_size=3)},
    optional={
        "n": st.integers(-1, 130) | ODD,
        "max_tokens": st.integers(-1, 50) | ODD,
        "max_completion_tokens": ODD,
        "temperature": ODD,
        "top_p": ODD,
        "presence_penalty": ODD,
        "frequency_penalty": ODD,
        "seed": ODD,
        "user": ODD,
        "stop": ODD,
        "stream": ODD,
        "tools": st.none() | TOOLS,
        "logprobs": st.none() | st.booleans(),
        "response_format": FORMATS,
        "metadata": st.none() | st.just({"a": "b"}),
    },
)
DOCUMENTS = TEXT | st.fixed_dictionaries({"text": TEXT}, optional={"id": ODD}) | ODD
RANKINGS = st.fixed_dictionaries(
    {"query": TEXT, "documents": st.lists(DOCUMENTS, max_size=3)},
    optional={
        "top_n": st.integers(-1, 5) | ODD,
        "return_documents": ODD,
        "stream": ODD,
        "max_tokens_per_doc": ODD,
    },
)


def passes(body: dict[str, Any], endpoint: Endpoint) -> bool:
    fitted = fit(body, endpoint, is_reranker=endpoint == RERANK)
    return not isinstance(fitted, InvalidBody) and not fitted.live_only


def status(body: dict[str, Any], endpoint: Endpoint) -> int:
    model = BGE if body["model"] == BGE.id else MISTRAL
    return answer(model, Request(endpoint, orjson.dumps(body), "r")).status


@given(CHATS)
def test_a_chat_that_passes_validation_is_answered(body: dict[str, Any]) -> None:
    assert not passes(body, CHAT) or status(body, CHAT) == 200


@given(CHATS)
def test_a_chat_passes_validation_if_it_fits_the_schema(body: dict[str, Any]) -> None:
    assert SCHEMA.is_valid({**chat_line("a"), "body": body}) == passes(body, CHAT)


@given(RANKINGS)
def test_a_ranking_passes_validation_if_it_fits_the_schema(ranking: dict[str, Any]) -> None:
    body = {"model": BGE.id, **ranking}
    assert SCHEMA.is_valid({**rerank_line("a"), "body": body}) == passes(body, RERANK)


@given(RANKINGS)
def test_a_ranking_means_the_same_through_both_doors(ranking: dict[str, Any]) -> None:
    """The rerank endpoint and a chat with the reranker take and refuse the same requests."""
    chat = {
        "model": BGE.id,
        "messages": [{"role": "user", "content": orjson.dumps(ranking).decode()}],
    }
    is_valid = passes({"model": BGE.id, **ranking}, RERANK)
    assert is_valid == (status({"model": BGE.id, **ranking}, RERANK) == 200)
    assert is_valid == (status(chat, CHAT) == 200)


@pytest.mark.parametrize(
    "body",
    [
        {"n": 20},
        {"n": 128},
        {"messages": [{"role": "user", "content": ""}]},
        {"stop": [[]]},
        {"stop": ""},
    ],
)
def test_what_real_servers_answer_is_answered(body: dict[str, Any]) -> None:
    asked = {"model": MISTRAL.id, "messages": [{"role": "user", "content": "Hello"}], **body}
    assert passes(asked, CHAT)
    assert status(asked, CHAT) == 200


def test_every_checked_parameter_is_followed_or_listed_as_ignored() -> None:
    checked = {*chat.ChatRequest.__struct_fields__, *chat.UsualChat.__struct_fields__} - {"raw"}
    assert checked == FOLLOWED | IGNORED
    assert not FOLLOWED & IGNORED

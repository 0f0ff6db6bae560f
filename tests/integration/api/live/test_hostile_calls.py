"""Hostile live calls get an error in the API's envelope: never a 500, and never a broken stream."""

import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.conftest import Answer, Api
from xalen_batch.endpoints.names import ENDPOINTS

pytestmark = pytest.mark.usefixtures("database")

EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "8")) * 8
CHAT, RERANKER, EMBEDDING = "mistral-small-3-1", "bge-reranker-v2", "bge-m3"
HELLO = [{"role": "user", "content": "Hello"}]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": CHAT, "messages": HELLO},
    "/v1/completions": {"model": CHAT, "prompt": "Once"},
    "/v1/responses": {"model": CHAT, "input": "Hello"},
    "/v1/embeddings": {"model": EMBEDDING, "input": "a"},
    "/v1/rerank": {"model": RERANKER, "query": "a", "documents": ["a", "b"]},
}
# Names that a check or a backend reads.
FIELDS = [
    *{name for body in GOOD.values() for name in body},
    *("stream", "stream_options", "service_tier", "background", "metadata", "simulate", "n"),
    *("max_tokens", "max_completion_tokens", "max_output_tokens", "tools", "tool_choice"),
    *("functions", "function_call", "response_format", "text", "reasoning", "instructions"),
    *("logprobs", "top_logprobs", "include", "previous_response_id", "conversation", "stop"),
    *("temperature", "top_n", "return_documents", "dimensions", "encoding_format", "user", "echo"),
    *("suffix", "best_of", "parallel_tool_calls", "seed", "store", "truncation", "logit_bias"),
]
# Words that are values of some field, so that more than the first check is met.
WORDS = [
    *("auto", "default", "user", "assistant", "tool", "text", "input_text", "function"),
    *("function_call", "function_call_output", "reasoning", "json_schema", "json_object", "base64"),
    *("required", "none", "message.output_text.logprobs", "find", "{}", "", "\0", "\U0001f600"),
]
KEYS = [
    "type",
    "role",
    "content",
    "text",
    "name",
    "arguments",
    "call_id",
    "id",
    "function",
    "effort",
]
KEYS += [
    "format",
    "schema",
    "parameters",
    "input",
    "output",
    "include_usage",
    "strict",
    "image_url",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)
BODIES = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a string": b'"x"',
    "a number": b"1",
    "no JSON": b"{",
    "no UTF-8": b'{"model": "\xff"}',
    "a lone surrogate": b'{"model": "\\ud800"}',
    "NaN": b'{"model": NaN}',
    "100,000 brackets": b"[" * 100_000,
    "100,000 objects": b'{"model":' * 100_000,
    "a model that is none": b'{"model": {}}',
    "a model of 10 KB": json.dumps({"model": "x" * 10_000}).encode(),
    "a model with a NUL": b'{"model": "\\u0000"}',
    "a form": b"model=mistral-small-3-1",
}


def refused(answer: Answer) -> None:
    error = answer.error
    assert 400 <= answer.status < 500, answer
    assert 0 < len(error["message"]) < 2_000


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_body_that_is_no_request_is_refused(api: Api, endpoint: str) -> None:
    for body in BODIES.values():
        refused(api.ask("POST", endpoint, body, headers={"content-type": "application/json"}))


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_body_beyond_the_limit_is_refused_unread(api: Api, endpoint: str) -> None:
    length = {"content-length": str(10**12), "content-type": "application/json"}
    assert api.ask("POST", endpoint, b"", headers=length).status == 413
    assert api.ask("POST", endpoint, b"", headers=length, key=None).status == 401


def test_a_response_repeats_a_number_of_more_than_64_bits(api: Api) -> None:
    body = GOOD["/v1/responses"] | {"store": 2**70}
    answer = api.ask("POST", "/v1/responses", body)
    assert (answer.status, answer.json["store"]) == (200, 2**70)


@pytest.mark.parametrize("endpoint", ["/v1/embeddings", "/v1/rerank"])
def test_what_has_no_stream_is_not_streamed(api: Api, endpoint: str) -> None:
    answer = api.ask("POST", endpoint, GOOD[endpoint] | {"stream": True})
    assert (answer.status, answer.error["param"]) == (400, "stream")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_values_of_any_type_in_any_field_are_answered(api: Api, endpoint: str) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3))
    def ask(changed: dict[str, Any]) -> None:
        answer = api.ask("POST", endpoint, GOOD[endpoint] | changed)
        if answer.status != 200:
            refused(answer)
        elif changed.get("stream") is True:
            assert b"model_broke_off" not in answer.body
            assert b"data: " in answer.body

    ask()

"""A backend's usage is believed only where it can be true."""

import json
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch.backends.contract import Request
from xalen_batch.backends.usage import usage_of
from xalen_batch.endpoints import tokens
from xalen_batch.endpoints.names import CHAT, RERANK
from xalen_batch.endpoints.usage import ABSURD, Usage

MESSAGES = [{"role": "user", "content": "Where is my parcel?"}]
ASKED = Request(CHAT, orjson.dumps({"model": "m", "messages": MESSAGES}), "r")
RANKED = Request(
    RERANK,
    orjson.dumps({"model": "m", "query": "where", "documents": ["here", {"text": "there"}]}),
    "r",
)
CHOICES = [{"message": {"role": "assistant", "content": "It is on its way."}}]
COUNTED = Usage(tokens.count_chat(MESSAGES), tokens.count("It is on its way."), counted=True)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["prompt_tokens", "completion_tokens", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def billed(answer: Any, request: Request) -> Usage:
    """The usage of an answer that went over the wire, with integers of any length, as a backend may
    write them.
    """
    sent = json.dumps(answer).encode()
    return usage_of(msgspec.json.decode(sent), len(sent), request)


def chat(usage: Any) -> Usage:
    return billed({"choices": CHOICES, "usage": usage}, ASKED)


def test_plain_usage_is_taken() -> None:
    assert chat({"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}) == Usage(12, 7)
    assert chat({"input_tokens": 12, "output_tokens": 7}) == Usage(12, 7)


def test_details_are_taken_and_never_pass_their_totals() -> None:
    details = {
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    assert chat({"prompt_tokens": 12, "completion_tokens": 7, **details}) == Usage(12, 7, 5, 3)
    assert chat({"prompt_tokens": 2, "completion_tokens": 1, **details}) == Usage(2, 1, 2, 1)
    assert chat(
        {"prompt_tokens": 2, "completion_tokens": 1, "prompt_tokens_details": None}
    ) == Usage(2, 1)


@pytest.mark.parametrize("wrong", [None, "12", -1, True, 1.0, 1.5, ABSURD + 1, [], {}, 10**30])
@pytest.mark.parametrize("key", ["prompt_tokens", "completion_tokens"])
def test_unusable_numbers_are_counted_by_us(key: str, wrong: Any) -> None:
    assert chat({"prompt_tokens": 12, "completion_tokens": 7} | {key: wrong}) == COUNTED


@pytest.mark.parametrize("usage", [None, "12", 5, [], {}])
def test_unusable_usage_is_counted_by_us(usage: Any) -> None:
    assert chat(usage) == COUNTED


def test_missing_usage_is_counted_by_us() -> None:
    assert billed({"choices": CHOICES}, ASKED) == COUNTED


def test_more_tokens_than_bytes_are_not_believed() -> None:
    assert chat({"prompt_tokens": 9_000, "completion_tokens": 7}) == COUNTED
    assert chat({"prompt_tokens": 12, "completion_tokens": 9_000}) == COUNTED


@pytest.mark.parametrize("kind", tokens.MEDIA)
def test_a_picture_or_a_recording_may_be_many_tokens(kind: str) -> None:
    part = {"type": kind, kind: {"url": "https://example.com/a"}}
    asked = Request(CHAT, orjson.dumps({"messages": [{"role": "user", "content": [part]}]}), "r")
    assert billed(
        {"choices": CHOICES, "usage": {"prompt_tokens": 9_000, "completion_tokens": 7}}, asked
    ) == Usage(9_000, 7)


def test_hidden_reasoning_may_be_longer_than_the_answer() -> None:
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 9_000,
        "completion_tokens_details": {"reasoning_tokens": 8_990},
    }
    assert chat(usage) == Usage(12, 9_000, 0, 8_990)


def test_tool_calls_and_reasoning_count_as_written() -> None:
    message = {
        "content": None,
        "reasoning_content": "one two",
        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
    }
    assert billed({"choices": [{"message": message}]}, ASKED).output_tokens > 2


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ({"usage": {"prompt_tokens": 9, "total_tokens": 10}}, 9),
        ({"usage": {"total_tokens": 10}}, 10),
        ({"meta": {"tokens": {"input_tokens": 11}}}, 11),
        ({"meta": {"billed_units": {"input_tokens": 12}}}, 12),
    ],
)
def test_rerank_usage_is_found_where_servers_put_it(answer: Any, read: int) -> None:
    assert billed({"results": [], **answer}, RANKED) == Usage(read)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"usage": {"total_tokens": -4}},
        {"usage": {"total_tokens": 10_000}},
        {"meta": {"billed_units": {"search_units": 1}}},
    ],
)
def test_rerank_without_usable_usage_is_counted_by_us(answer: Any) -> None:
    assert billed({"results": [], **answer}, RANKED) == Usage(
        tokens.count_rerank("where", ["here", "there"]), counted=True
    )


def test_rerank_may_read_a_long_query_with_every_document() -> None:
    asked = Request(RERANK, orjson.dumps({"query": "word " * 1_000, "documents": ["a"] * 20}), "r")
    assert billed({"usage": {"total_tokens": 20_060}}, asked) == Usage(20_060)


@given(JSON, JSON, st.sampled_from([ASKED, RANKED]))
def test_nothing_a_backend_says_raises_or_is_billed_beyond_reason(
    usage: Any, choices: Any, asked: Request
) -> None:
    found = billed({"usage": usage, "choices": choices, "meta": usage}, asked)
    assert 0 <= found.cached_tokens <= found.input_tokens <= 10_000
    assert 0 <= found.reasoning_tokens <= found.output_tokens <= ABSURD

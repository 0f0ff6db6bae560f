"""An output line states the usage it is billed by, whatever the backend reported."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from xalen_batch.backends.clients.contract import Reply
from xalen_batch.backends.contract import Answered, Request
from xalen_batch.backends.outcomes import outcome_of
from xalen_batch.backends.rerank_chat import to_chat
from xalen_batch.backends.usage import usage_of
from xalen_batch.endpoints.names import CHAT, EMBEDDINGS, RERANK
from xalen_batch.endpoints.usage import Usage

CHOICE = {
    "index": 0,
    "message": {"role": "assistant", "content": "It is on its way."},
    "finish_reason": "stop",
}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [CHOICE],
}
ASKED = Request(
    CHAT,
    orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "Where is my parcel?"}]}),
    "r",
)
RANKED = Request(
    RERANK, orjson.dumps({"model": "m", "query": "where", "documents": ["here", "there"]}), "r"
)
SOUND = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}

NUMBERS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 9_000),
    st.floats(0, 20),
    st.sampled_from(["12", 10**9, 10**30, -(2**70), [], {}]),
)
DETAILS = st.one_of(
    NUMBERS, st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens"]), NUMBERS)
)
USAGES = st.one_of(
    NUMBERS,
    st.dictionaries(
        st.sampled_from(
            ["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens"]
        ),
        NUMBERS,
    ).flatmap(
        lambda usage: st.dictionaries(
            st.sampled_from(
                ["prompt_tokens_details", "completion_tokens_details", "input_tokens_details"]
            ),
            DETAILS,
        ).map(lambda details: usage | details)
    ),
)


def sent(answer: Any, request: Request = ASKED) -> tuple[dict[str, Any], Usage]:
    """The body on the output line of an answer from the wire, and the usage that is billed."""
    outcome = outcome_of(Reply(200, json.dumps(answer).encode(), {}.get), request)
    assert isinstance(outcome, Answered)
    body: dict[str, Any] = json.loads(outcome.body)
    return body, outcome.usage


def test_a_usage_that_is_billed_stays_as_it_came() -> None:
    usage = {**SOUND, "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 0}, "cost": 0.1}
    body, _ = sent({**ANSWER, "usage": usage})
    assert body == {**ANSWER, "usage": usage}


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": -1, "completion_tokens": 7},
        {"prompt_tokens": 12},
        {"prompt_tokens": 12, "completion_tokens": 10**12},
        {"prompt_tokens": 9_000, "completion_tokens": 7},
    ],
    ids=["null", "empty", "negative", "part missing", "absurd", "beyond the bytes"],
)
def test_a_usage_that_is_counted_is_stated_with_its_source(usage: Any) -> None:
    body, billed = sent({**ANSWER, "usage": usage})
    assert billed.counted
    read, written = billed.input_tokens, billed.output_tokens
    assert body["usage"] == {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }
    assert body["xalen"] == {"usage_source": "counted", "usage_reported": usage}
    ChatCompletion.model_validate(body, strict=True)


def test_a_usage_that_is_missing_is_stated() -> None:
    body, billed = sent(ANSWER)
    assert body["usage"]["prompt_tokens"] == billed.input_tokens > 0
    assert body["xalen"] == {"usage_source": "counted", "usage_reported": None}


def test_other_names_and_impossible_details_become_the_standard_ones() -> None:
    reported = {
        "input_tokens": 12,
        "output_tokens": 7,
        "input_tokens_details": {"cached_tokens": 20},
    }
    body, billed = sent({**ANSWER, "usage": reported})
    assert billed == Usage(12, 7, cached_tokens=12)
    assert body["usage"] == {**SOUND, "prompt_tokens_details": {"cached_tokens": 12}}
    assert body["xalen"] == {"usage_source": "reported", "usage_reported": reported}


def test_only_we_say_where_numbers_come_from() -> None:
    body, _ = sent({"xalen": {"usage_source": "counted"}, **ANSWER, "usage": SOUND})
    assert body == {**ANSWER, "usage": SOUND}


def test_what_is_not_replaced_keeps_its_bytes() -> None:
    raw = (
        b'{"choices": [{"message":{"content":"\\u00e9\\u0000"}}], "big":'
        b' 1000000000000000000000000000000, "small": 1.10}'
    )
    outcome = outcome_of(Reply(200, raw, {}.get), ASKED)
    assert isinstance(outcome, Answered)
    assert (
        b'"choices":[{"message":{"content":"\\u00e9\\u0000"}}],"big":1000000000000000000000000000000,"small":1.10'
        in outcome.body
    )


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        ({"usage": {"prompt_tokens": 9, "total_tokens": 10}}, None),
        ({"usage": {"total_tokens": 10}}, "reported"),
        ({"meta": {"billed_units": {"input_tokens": 12}}}, "reported"),
        ({"meta": {"billed_units": {"search_units": 1}}}, "counted"),
        ({"usage": {"total_tokens": -4}}, "counted"),
        ({"usage": {"prompt_tokens": 9, "completion_tokens": 3}}, "reported"),
        ({"usage": {"prompt_tokens": 9, "completion_tokens": None}}, "reported"),
    ],
)
def test_a_ranking_states_its_usage_in_both_shapes(
    answer: dict[str, Any], source: str | None
) -> None:
    body, billed = sent({"results": [], **answer}, RANKED)
    assert body["usage"]["prompt_tokens"] == billed.input_tokens
    assert body.get("xalen", {}).get("usage_source") == source
    chat = json.loads(to_chat(Answered(200, orjson.dumps(body), billed), ASKED))
    assert chat["usage"]["prompt_tokens"] == billed.input_tokens
    assert chat.get("xalen") == body.get("xalen")


@given(USAGES, st.booleans())
def test_every_answer_states_exactly_what_it_is_billed_by(usage: Any, has_usage: bool) -> None:
    body, billed = sent({**ANSWER, "usage": usage} if has_usage else ANSWER)
    stated = body["usage"]
    assert (stated["prompt_tokens"], stated["completion_tokens"]) == (
        billed.input_tokens,
        billed.output_tokens,
    )
    assert (stated.get("prompt_tokens_details") or {}).get(
        "cached_tokens", 0
    ) == billed.cached_tokens
    assert (stated.get("completion_tokens_details") or {}).get(
        "reasoning_tokens", 0
    ) == billed.reasoning_tokens
    assert (body.get("xalen", {}).get("usage_source") == "counted") == billed.counted
    assert {key: body[key] for key in ANSWER} == ANSWER


@given(USAGES)
def test_embeddings_state_exactly_what_they_are_billed_by(usage: Any) -> None:
    """The fast path takes what the full one would, and neither decodes a vector's numbers anew."""
    asked = Request(EMBEDDINGS, b'{"model":"m","input":["a b c","d"]}', "r")
    vector = b"[0.1234567890123456789, 1e-7]"
    raw = b'{"data":[{"index":0,"embedding":%b}],"usage":%b}' % (
        vector,
        json.dumps(usage).encode(),
    )
    outcome = outcome_of(Reply(200, raw, {}.get), asked)
    assert isinstance(outcome, Answered)
    assert outcome.usage == usage_of(json.loads(raw), len(raw), asked)
    body = json.loads(outcome.body)
    assert body["usage"]["prompt_tokens"] == outcome.usage.input_tokens
    assert outcome.usage == Usage(body["usage"]["prompt_tokens"], counted=outcome.usage.counted)
    assert (body.get("xalen", {}).get("usage_source") == "counted") == outcome.usage.counted
    assert vector in outcome.body

"""Log probabilities of tokens."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.backends.simulated.asking import ask, choice, completion, error, fault, said
from xalen_batch.backends.simulated.logprobs import tokens_of
from xalen_batch.endpoints import tokens

TOOL = {"type": "function", "function": {"name": "invoice"}}


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_tokens_concatenate_to_the_content_and_the_likeliest_comes_first(top: int) -> None:
    body = completion(logprobs=True, top_logprobs=top)
    (made,) = body["choices"]
    entries = made["logprobs"]["content"]
    text = made["message"]["content"]
    assert "".join(entry["token"] for entry in entries) == text
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == text.encode()
    assert len(entries) == body["usage"]["completion_tokens"]
    for entry in entries:
        best = entry["top_logprobs"]
        assert len(best) == top
        assert entry["logprob"] < 0
        assert sum(math.exp(other["logprob"]) for other in best) < 1.000001
        assert len({other["token"] for other in best}) == top
        assert [other["logprob"] for other in best] == sorted(
            (other["logprob"] for other in best), reverse=True
        )
        if best:
            assert best[0] == {key: entry[key] for key in ("token", "logprob", "bytes")}


def test_no_logprobs_unless_asked_for() -> None:
    assert choice()["logprobs"] is None
    assert choice(logprobs=False)["logprobs"] is None
    assert choice(logprobs=True)["logprobs"]["content"][0]["top_logprobs"] == []


def test_a_choice_with_calls_has_no_content_to_tell_of() -> None:
    made = choice(messages=said("My invoice"), tools=[TOOL], logprobs=True)
    assert made["logprobs"] == {"content": None, "refusal": None}


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_is_cut_into_the_tokens_that_are_counted(text: str) -> None:
    cut = tokens_of(text)
    assert "".join(cut) == text
    assert len(cut) == max(tokens.count(text), bool(text))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"top_logprobs": 2}, (None, "top_logprobs")),
        ({"logprobs": False, "top_logprobs": 2}, (None, "top_logprobs")),
        ({"logprobs": True, "top_logprobs": 21}, (None, "top_logprobs")),
        ({"logprobs": True, "top_logprobs": -1}, ("integer_below_min_value", "top_logprobs")),
        ({"logprobs": True, "top_logprobs": "x"}, ("invalid_type", "top_logprobs")),
        ({"logprobs": 1}, ("invalid_type", "logprobs")),
    ],
)
def test_invalid_requests_are_refused(
    body: dict[str, Any], expected: tuple[str | None, str]
) -> None:
    assert error(ask(**body)) == (400, *expected)


def test_the_error_has_the_words_of_openai() -> None:
    assert fault(ask(top_logprobs=1))["message"] == (
        "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
    )

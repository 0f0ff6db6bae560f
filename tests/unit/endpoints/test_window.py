"""A prompt that cannot fit the context window is refused with the numbers; one that may fit never
is.
"""

import json

import pytest

from tests.factories import CHAT_MODEL, RERANK_MODEL, chat_line, jsonl, rerank_line
from xalen_batch import catalog
from xalen_batch.endpoints import tokens
from xalen_batch.validation.errors import Fault
from xalen_batch.validation.lines import GoodLine, scan

CHAT_WINDOW = 131_072
RERANK_WINDOW = 8_192


@pytest.fixture(autouse=True)
def _no_exact_tokenizer(monkeypatch):
    monkeypatch.setattr(tokens, "exact_counter", lambda owned_by: None)


def read(line) -> GoodLine | Fault:
    # With the endpoint, a usual line goes the short way.
    (found,) = scan([jsonl([line])], endpoint=line["url"], models=catalog.read(None))
    return found


def test_a_chat_with_more_words_than_the_window_has_tokens_is_refused_with_the_numbers():
    fault = read(chat_line("a", "word " * (CHAT_WINDOW + 10)))
    assert (fault.code, fault.line, fault.param) == ("context_length_exceeded", 1, "body.messages")
    assert "at least 131,082 tokens by a low estimate" in fault.message
    assert f"the context window of {CHAT_MODEL} is 131,072 tokens" in fault.message


def test_text_without_spaces_is_refused_where_even_a_low_estimate_does_not_fit():
    assert isinstance(read(chat_line("a", "漢字" * 130_000)), Fault)


@pytest.mark.parametrize(
    "content", ["word " * 100_000, "漢字" * 90_000, " " * 2_000_000, "x" * 900_000]
)
def test_a_chat_larger_in_bytes_than_the_window_that_may_fit_is_taken(content):
    assert isinstance(read(chat_line("a", content)), GoodLine)


def test_a_picture_counts_for_nothing():
    picture = {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + "A" * 3_000_000},
    }
    assert isinstance(
        read(chat_line("a", [picture, {"type": "text", "text": "What is it?"}])), GoodLine
    )


def test_the_models_own_tokenizer_decides_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(tokens, "exact_counter", lambda owned_by: len)
    fault = read(chat_line("a", "x" * 131_073))
    assert "have 131,073 tokens" in fault.message
    assert isinstance(read(chat_line("a", "x" * 131_072)), GoodLine)


def test_every_document_must_fit_together_with_the_query():
    fault = read(rerank_line("a", "some query", ["short", "word " * RERANK_WINDOW]))
    assert (fault.code, fault.param) == ("context_length_exceeded", "body.documents[1]")
    assert "at least 8,194 tokens" in fault.message
    assert f"{RERANK_MODEL} is 8,192 tokens" in fault.message


def test_many_documents_that_each_fit_are_taken():
    assert isinstance(read(rerank_line("a", "some query", ["word " * 1_000] * 50)), GoodLine)


def test_a_chat_to_the_reranker_is_checked_pair_by_pair():
    def asking(*documents):
        return chat_line(
            "a", json.dumps({"query": "some query", "documents": documents}), model=RERANK_MODEL
        )

    assert isinstance(read(asking(*["word " * 1_000] * 50)), GoodLine)
    assert read(asking("word " * RERANK_WINDOW)).code == "context_length_exceeded"


def test_a_long_message_to_the_reranker_that_is_no_query_is_left_for_its_line_error():
    assert isinstance(read(chat_line("a", "word " * 100_000, model=RERANK_MODEL)), GoodLine)

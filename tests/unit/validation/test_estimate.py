"""Estimate: tokens and exact costs of the good lines, and every fault at once."""

import json
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from tests.factories import CHAT_MODEL, RERANK_MODEL, chat_line, jsonl, rerank_line
from xalen_batch import catalog
from xalen_batch.billing.terms import Terms
from xalen_batch.endpoints import tokens
from xalen_batch.endpoints.names import CHAT, RERANK
from xalen_batch.validation import estimate as estimates

PRICES = {CHAT_MODEL: {"input": "0.02", "output": "0.04"}, RERANK_MODEL: {"input": "0.003"}}


def estimate(content: bytes, endpoint=CHAT, prices=PRICES, discount_rate=Decimal("0.5")):
    return estimates.estimate(
        [content],
        endpoint=endpoint,
        models=catalog.read(None),
        terms=Terms(prices, dict.fromkeys(prices, "openai")),
        discount_rate=discount_rate,
    )


def share(found, model=CHAT_MODEL):
    return found.models[model].render()


def test_a_chat_costs_its_input_and_answer_at_the_batch_price_exactly():
    found = estimate(jsonl([chat_line("a", max_tokens=100)]))
    read = tokens.count_chat([{"role": "user", "content": "Where is my parcel?"}])
    cost = (read * Decimal("0.02") + 100 * Decimal("0.04")) / 1_000_000 / 2
    assert share(found)["input_tokens"] == read
    assert found.expected_cost == cost
    assert found.render()["expected_cost"] == f"{cost:f}"


def test_an_estimate_assumes_that_no_input_is_cached():
    cached = {CHAT_MODEL: PRICES[CHAT_MODEL] | {"cached_input": "0.001"}}
    lines = jsonl([chat_line("a")])
    assert estimate(lines, prices=cached).render() == estimate(lines).render()


def test_an_answer_is_expected_to_be_short_and_may_be_as_long_as_the_request_allows():
    found = share(
        estimate(
            jsonl([chat_line("a", max_tokens=5_000, n=3), chat_line("b", max_completion_tokens=7)])
        )
    )
    assert found["expected_output_tokens"] == 3 * estimates.EXPECTED_ANSWER + 7
    assert found["max_output_tokens"] == 3 * 5_000 + 7


def test_an_answer_without_a_limit_may_fill_the_context_window():
    found = share(estimate(jsonl([chat_line("a")])))
    assert 131_000 < found["max_output_tokens"] <= 131_072
    assert found["max_input_tokens"] >= found["input_tokens"]


def test_a_rerank_reads_the_query_again_with_each_document_and_writes_nothing():
    found = share(
        estimate(jsonl([rerank_line("a", "query", ["one two", "three"])]), RERANK), RERANK_MODEL
    )
    assert found["input_tokens"] == tokens.count_rerank("query", ["one two", "three"])
    assert found["max_output_tokens"] == 0


def test_a_chat_to_the_reranker_counts_like_the_rerank_it_carries():
    carried = json.dumps({"query": "query", "documents": ["one two", "three"]})
    by_chat = estimate(jsonl([chat_line("a", carried, model=RERANK_MODEL)]))
    by_rerank = estimate(jsonl([rerank_line("a", "query", ["one two", "three"])]), RERANK)
    assert by_chat.max_cost == by_rerank.max_cost > 0
    assert by_chat.expected_cost == by_rerank.expected_cost > 0


def test_models_are_counted_apart_and_summed():
    carried = json.dumps({"query": "query", "documents": ["one"]})
    found = estimate(
        jsonl([chat_line("a"), chat_line("b", carried, model=RERANK_MODEL), chat_line("c")])
    )
    assert {model: part.lines for model, part in found.models.items()} == {
        CHAT_MODEL: 2,
        RERANK_MODEL: 1,
    }
    assert found.max_cost == sum(part.max_cost for part in found.models.values())


def test_all_faults_are_there_at_once_with_their_lines_and_good_lines_are_counted_all_the_same():
    lines = [
        chat_line("a"),
        chat_line("a"),
        {**chat_line("b"), "method": "PUT"},
        chat_line("c", model="nope"),
        chat_line("d"),
    ]
    found = estimate(jsonl(lines)).render()
    assert [(fault["line"], fault["code"]) for fault in found["errors"]["data"]] == [
        (2, "duplicate_custom_id"),
        (3, "invalid_method"),
        (4, "model_not_found"),
    ]
    assert (found["valid"], found["lines"], found["error_count"]) == (False, 2, 3)


def test_a_model_without_a_price_is_an_error_and_never_free():
    found = estimate(jsonl([chat_line("a"), chat_line("b")]), prices={CHAT_MODEL: {}})
    assert [fault.code for fault in found.faults.kept] == ["model_not_priced"]
    assert not found.models


def test_errors_beyond_the_limit_are_a_number(configure):
    configure(max_reported_errors=2)
    found = estimate(b"x\n" * 5).render()
    assert (len(found["errors"]["data"]), found["error_count"]) == (3, 5)
    assert found["errors"]["data"][-1]["message"].startswith("3 more errors")


def test_the_endpoint_is_told_where_it_was_not_given():
    assert estimate(jsonl([rerank_line("a")]), None).endpoint == RERANK


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.none() | st.integers(1, 10**9),
            st.integers(1, 5),
        ),
        min_size=1,
        max_size=8,
    ),
    st.decimals(0, 1, places=3),
)
def test_the_expected_cost_never_passes_the_maximum_and_both_are_exact_strings(lines, rate):
    content = jsonl(
        [
            chat_line(str(at), text, max_tokens=limit, n=n)
            for at, (text, limit, n) in enumerate(lines)
        ]
    )
    found = estimate(content, discount_rate=rate)
    assert 0 <= found.expected_cost <= found.max_cost
    shown = found.render()
    assert Decimal(shown["max_cost"]) == found.max_cost
    assert json.loads(json.dumps(shown)) == shown

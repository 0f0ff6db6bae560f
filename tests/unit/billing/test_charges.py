"""A line's price: the design's worked examples to the last digit, and properties of any."""

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch import money
from xalen_batch.billing.charges import Tariff
from xalen_batch.endpoints.usage import Usage

HALF = Decimal("0.5")
CHAT = Tariff({"input": "0.02", "output": "0.04"}, HALF)
RERANK = Tariff({"input": "0.003"}, HALF)
ONE_LINE = Usage(1_234, 567)

TOKENS = st.integers(0, 200_000)
USAGES = st.builds(
    lambda others, cached, written: Usage(others + cached, written, cached), TOKENS, TOKENS, TOKENS
)
PRICES = st.decimals(min_value=0, max_value=1000, places=6).map(str)
RATES = st.decimals(min_value=0, max_value=1, places=4)


def amount(tariff: Tariff, *usages: Usage) -> Decimal:
    return sum((tariff.charge(usage).amount for usage in usages), Decimal(0))


def test_one_chat_line() -> None:
    gross = money.gross(1_234, Decimal("0.02")) + money.gross(567, Decimal("0.04"))
    assert gross == Decimal("0.00004736")
    assert money.discount(gross, HALF) == Decimal("-0.00002368")
    assert CHAT.charge(ONE_LINE) == (Decimal("0.00002368"), None)


def test_a_chat_batch() -> None:
    assert amount(CHAT, Usage(61_203_477, 9_640_915)) == Decimal("0.804853070000")


def test_a_rerank_batch() -> None:
    assert RERANK.charge(Usage(333_333_333)) == (Decimal("0.4999999995"), None)


def test_both_on_one_statement_where_rounding_each_line_would_bill_a_cent_more() -> None:
    exact = amount(CHAT, Usage(61_203_477, 9_640_915)) + amount(RERANK, Usage(333_333_333))
    assert exact == Decimal("1.3048530695")
    assert money.payable(exact) - exact == Decimal("-0.0048530695")
    assert money.payable(exact) == Decimal("1.30")
    lines = ["1.22406954", "0.3856366", "-0.80485307", "0.999999999", "-0.4999999995"]
    assert sum(map(Decimal, lines)) == exact
    assert sum(money.payable(Decimal(line)) for line in lines) == Decimal("1.31")


def test_a_hundred_thousand_lines_where_rounding_each_would_bill_nothing() -> None:
    lines = [ONE_LINE] * 100_000
    assert money.payable(amount(CHAT, *lines)) == Decimal("2.37")
    assert sum(money.payable(CHAT.charge(line).amount) for line in lines) == 0


@pytest.mark.parametrize(
    ("price", "usage", "net", "flag"),
    [
        ({"input": "0.003"}, Usage(1_000, 0), "0.0000015", None),
        ({"input": "0.003"}, Usage(1_000, 5), "0.0000015", "unpriced_output"),
        ({"output": "2"}, Usage(1_000, 5), "0.000005", "unpriced_input"),
        ({}, Usage(1_000, 5), "0", "unpriced_input,unpriced_output"),
        (
            {"input": "0.003"},
            Usage(1_000, 5, counted=True),
            "0.0000015",
            "unpriced_output,usage_counted",
        ),
        ({"input": "1", "output": "1"}, Usage(1, 1, counted=True), "0.000001", "usage_counted"),
        ({"input": "0", "output": "0"}, Usage(9, 9), "0", None),
        ({"input": "1", "output": "1"}, Usage(), "0", None),
        ({"input": "1", "cached_input": "0.1"}, Usage(100, 0, 40), "0.000032", None),
        ({"input": "1", "cached_input": "0.1"}, Usage(40, 0, 40), "0.000002", None),
        ({"input": "1", "cached_input": "0"}, Usage(40, 0, 40), "0", None),
        ({"cached_input": "0.1"}, Usage(40, 0, 40), "0.000002", None),
        ({"cached_input": "0.1"}, Usage(41, 0, 40), "0.000002", "unpriced_input"),
    ],
)
def test_what_has_no_price_is_billed_nothing_and_flagged(
    price: dict[str, str], usage: Usage, net: str, flag: str | None
) -> None:
    assert Tariff(price, HALF).charge(usage) == (Decimal(net), flag)


def test_a_line_with_cached_input_at_a_tenth_of_the_price() -> None:
    tariff = Tariff({"input": "0.02", "cached_input": "0.002", "output": "0.04"}, HALF)
    # 234 tokens at 0.02, 1,000 at 0.002 and 567 at 0.04 USD per million, less half.
    charge = tariff.charge(Usage(1_234, 567, cached_tokens=1_000))
    assert charge == (Decimal("0.00001468"), None)
    assert tariff.charge(ONE_LINE) == CHAT.charge(ONE_LINE)


def test_cached_and_reasoning_tokens_are_part_of_input_and_output() -> None:
    assert CHAT.charge(Usage(1_234, 567, cached_tokens=1_000, reasoning_tokens=500)) == CHAT.charge(
        ONE_LINE
    )


@given(st.lists(USAGES, max_size=40), PRICES, PRICES, PRICES, RATES)
def test_the_sum_of_the_charges_is_the_charge_of_the_sums(
    usages: list[Usage], read: str, cached: str, written: str, rate: Decimal
) -> None:
    tariff = Tariff({"input": read, "cached_input": cached, "output": written}, rate)
    total = Usage(
        sum(usage.input_tokens for usage in usages),
        sum(usage.output_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
    )
    with localcontext(money.EXACT):
        gross = (
            money.gross(total.input_tokens - total.cached_tokens, Decimal(read))
            + money.gross(total.cached_tokens, Decimal(cached))
            + money.gross(total.output_tokens, Decimal(written))
        )
        assert (
            amount(tariff, *usages) == amount(tariff, total) == gross + money.discount(gross, rate)
        )


@given(st.data(), st.lists(USAGES, min_size=1, max_size=30))
def test_splitting_a_batch_or_permuting_its_lines_changes_nothing(
    data: st.DataObject, usages: list[Usage]
) -> None:
    cut = data.draw(st.integers(0, len(usages)))
    shuffled = data.draw(st.permutations(usages))
    assert amount(CHAT, *shuffled[:cut]) + amount(CHAT, *shuffled[cut:]) == amount(CHAT, *usages)

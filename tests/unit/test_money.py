"""Money is exact until the one function that rounds, which rounds half up."""

from decimal import Decimal, FloatOperation, Inexact

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch import money

AMOUNTS = st.decimals(
    min_value=0, max_value=10**9, allow_nan=False, allow_infinity=False, places=12
)
TOKENS = st.integers(0, 10**12)
PRICES = st.decimals(min_value=0, max_value=1000, places=6)
RATES = st.decimals(min_value=0, max_value=1, places=4)


@pytest.mark.parametrize(
    ("tokens", "price", "gross", "discount"),
    [
        (61_203_477, "0.02", "1.22406954", "-0.61203477"),
        (9_640_915, "0.04", "0.3856366", "-0.1928183"),
        (333_333_333, "0.003", "0.999999999", "-0.4999999995"),
    ],
)
def test_gross_and_discount_keep_every_digit(
    tokens: int, price: str, gross: str, discount: str
) -> None:
    assert money.gross(tokens, Decimal(price)) == Decimal(gross)
    assert money.discount(Decimal(gross), Decimal("0.5")) == Decimal(discount)


@given(TOKENS, TOKENS, PRICES)
def test_gross_is_linear_in_tokens(some: int, more: int, price: Decimal) -> None:
    assert money.gross(some, price) + money.gross(more, price) == money.gross(some + more, price)


@given(AMOUNTS, RATES)
def test_discount_and_what_is_left_sum_to_the_gross(amount: Decimal, rate: Decimal) -> None:
    assert amount + money.discount(amount, rate) == amount * (1 - rate)


def test_a_digit_that_would_be_lost_raises() -> None:
    @money.exact
    def third() -> Decimal:
        return Decimal(1) / 3

    with pytest.raises(Inexact):
        third()


def test_a_float_raises() -> None:
    with pytest.raises((FloatOperation, TypeError)):
        money.gross(1, 0.02)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("exact", "payable"),
    [
        ("1.3048530695", "1.30"),
        ("2.368", "2.37"),
        ("0.004999999999", "0.00"),
        ("0.005", "0.01"),
        ("0.015", "0.02"),
        ("0.025", "0.03"),
        ("0", "0.00"),
    ],
)
def test_payable_rounds_half_up_to_cents(exact: str, payable: str) -> None:
    assert str(money.payable(Decimal(exact))) == payable


@given(AMOUNTS)
def test_payable_is_whole_cents_and_at_most_half_a_cent_away(amount: Decimal) -> None:
    rounding = money.payable(amount) - amount
    assert -Decimal("0.005") < rounding <= Decimal("0.005")
    assert money.payable(amount).as_tuple().exponent == -2


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        ("0.00002368", "0.00002368"),
        ("-0.804853070000", "-0.80485307"),
        ("1E-12", "0.000000000001"),
        ("5E+3", "5000.00"),
        ("0E-12", "0.00"),
        ("-0.00", "0.00"),
        ("1.5", "1.50"),
    ],
)
def test_amounts_are_shown_in_plain_digits(amount: str, shown: str) -> None:
    assert money.render(Decimal(amount)) == shown


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**15), max_value=10**15))
def test_showing_an_amount_loses_nothing(amount: Decimal) -> None:
    assert Decimal(money.render(amount)) == amount

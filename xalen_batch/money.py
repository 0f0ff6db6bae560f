"""Exact money: a Decimal context that raises instead of rounding, and one function that rounds."""

from collections.abc import Callable
from decimal import (
    ROUND_HALF_UP,
    Context,
    Decimal,
    DivisionByZero,
    FloatOperation,
    Inexact,
    InvalidOperation,
    Overflow,
    localcontext,
)
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

CURRENCY = "USD"
MINOR_UNIT = Decimal("0.01")
PER_MILLION = Decimal("0.000001")

EXACT = Context(
    prec=100, traps=[Inexact, FloatOperation, InvalidOperation, DivisionByZero, Overflow]
)


def exact(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function in the exact context, in which rounding or a float raises an error."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with localcontext(EXACT):
            return function(*args, **kwargs)

    return run


@exact
def gross(tokens: int, usd_per_million: Decimal) -> Decimal:
    """The list price in USD of a number of tokens, exact."""
    return tokens * usd_per_million * PER_MILLION


@exact
def discount(amount: Decimal, rate: Decimal) -> Decimal:
    """The amount of a discount line: minus `rate` times the amount, exact."""
    return -(rate * amount)


def payable(amount: Decimal) -> Decimal:
    """The amount rounded half up to cents. No other function rounds money."""
    with localcontext(Context(prec=100, rounding=ROUND_HALF_UP)):
        return amount.quantize(MINOR_UNIT)


def render(amount: Decimal) -> str:
    """All significant digits, without an exponent, and without trailing zeros beyond cents."""
    text = f"{amount:f}" if amount else "0"
    whole, _, fraction = text.partition(".")
    return f"{whole}.{fraction.rstrip('0').ljust(2, '0')}"

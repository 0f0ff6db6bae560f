"""The charge of a line: exact, net of the batch discount."""

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

from xalen_batch import money
from xalen_batch.endpoints.usage import Usage

# Part of the input.
CACHED_INPUT = "cached_input"
# The components of a price, in the order in which they are shown.
COMPONENTS = ("input", CACHED_INPUT, "output")

UNPRICED_INPUT = "unpriced_input"
UNPRICED_OUTPUT = "unpriced_output"
USAGE_COUNTED = "usage_counted"

ZERO = Decimal(0)


class Charge(NamedTuple):
    """The exact net price of a line in USD, and its flags.

    `flag`: reasons to check the charge, joined by commas; None: there are none.
    """

    amount: Decimal
    flag: str | None


class Tariff:
    """The prices of a model in a batch, net of its discount. Immutable, so any thread may use it.

    `price`: {component: USD per million tokens}. `rate`: the discount, from 0 to 1. Tokens of a
    component without a price are billed at 0 and flagged, since they are not free; but without a
    price of `cached_input`, cached tokens cost what other input costs (docs/decisions/0055).
    """

    __slots__ = ("_cached_difference", "_input", "_output")

    def __init__(self, price: Mapping[str, str], rate: Decimal) -> None:
        self._input = _per_token(price.get("input"), rate)
        self._output = _per_token(price.get("output"), rate)
        cached = _per_token(price.get(CACHED_INPUT), rate)
        # Of a cached token to another one; None: the price has no `cached_input`.
        self._cached_difference = (
            None if cached is None else money.EXACT.subtract(cached, self._input or ZERO)
        )

    def charge(self, usage: Usage) -> Charge:
        """The charge of a line with this usage."""
        # Methods of the context are faster than operators under `localcontext`; this runs for every
        # line.
        amount = money.EXACT.fma(
            usage.output_tokens,
            self._output or ZERO,
            money.EXACT.multiply(usage.input_tokens, self._input or ZERO),
        )
        if usage.cached_tokens and self._cached_difference is not None:
            amount = money.EXACT.fma(usage.cached_tokens, self._cached_difference, amount)
        if self._input is not None and self._output is not None and not usage.counted:
            return Charge(amount, None)
        return Charge(amount, self._flag(usage))

    def _flag(self, usage: Usage) -> str | None:
        others = usage.input_tokens
        if self._cached_difference is not None:
            others -= usage.cached_tokens
        flags = [
            flag
            for flag, is_up in (
                (UNPRICED_INPUT, self._input is None and others > 0),
                (UNPRICED_OUTPUT, self._output is None and usage.output_tokens > 0),
                (USAGE_COUNTED, usage.counted),
            )
            if is_up
        ]
        return ",".join(flags) or None


@money.exact
def _per_token(usd_per_million: str | None, rate: Decimal) -> Decimal | None:
    return (
        None
        if usd_per_million is None
        else Decimal(usd_per_million) * money.PER_MILLION * (1 - rate)
    )

"""What one line costs: exact, net of the batch discount."""

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

from xalen_batch import money
from xalen_batch.backends.contract import Usage

UNPRICED_INPUT = "unpriced_input"
UNPRICED_OUTPUT = "unpriced_output"
USAGE_COUNTED = "usage_counted"

ZERO = Decimal(0)


class Charge(NamedTuple):
    """Exact net price in USD, and why someone should look at it: a flag, several joined by commas,
    or none.
    """

    amount: Decimal
    flag: str | None


class Tariff:
    """A model's prices in a batch, net of its discount. Made once, used for every line.

    `price`: {component: USD per million tokens}. A component without a price is billed nothing and
    flagged: no price is not the same as free.
    """

    __slots__ = ("_input", "_output")

    def __init__(self, price: Mapping[str, str], rate: Decimal) -> None:
        self._input = _per_token(price.get("input"), rate)
        self._output = _per_token(price.get("output"), rate)

    def charge(self, usage: Usage) -> Charge:
        # The context's own methods, not operators under `localcontext`: this runs for every line.
        amount = money.EXACT.fma(
            usage.output_tokens,
            self._output or ZERO,
            money.EXACT.multiply(usage.input_tokens, self._input or ZERO),
        )
        if self._input is not None and self._output is not None and not usage.counted:
            return Charge(amount, None)
        return Charge(amount, self._flag(usage))

    def _flag(self, usage: Usage) -> str | None:
        flags = [
            flag
            for flag, is_up in (
                (UNPRICED_INPUT, self._input is None and usage.input_tokens > 0),
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

"""Estimate: the cost of a file before it is submitted, and all its faults.

Pure: needs no server, no database and no account. The figures rest on four assumptions:

- input tokens are counted by `endpoints.tokens.count`, an estimate;
- the expected answer has EXPECTED_ANSWER tokens, or the request's own limit if that is lower;
- no input is cached: where cached input is cheaper, that is only known from the answer;
- the maximum is one token for each byte of input, which no byte-level tokenizer exceeds, and
  answers as long as the request and the context window allow.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from xalen_batch import money
from xalen_batch.billing.terms import Terms
from xalen_batch.catalog import Model
from xalen_batch.config import Settings
from xalen_batch.endpoints import tokens
from xalen_batch.endpoints.window import LEAST_SHARE
from xalen_batch.validation.errors import Fault, Faults, refused
from xalen_batch.validation.lines import GoodLine, scan

EXPECTED_ANSWER = 256


@dataclass
class ModelEstimate:
    """The lines of one model: their tokens, and the cost in USD after the batch discount."""

    model: Model
    price: Mapping[str, str]
    discount_rate: Decimal
    lines: int = 0
    input_tokens: int = 0
    max_input_tokens: int = 0
    output_tokens: int = 0
    max_output_tokens: int = 0

    def extend(self, other: "ModelEstimate") -> None:
        """Add the estimate of other lines of the same model."""
        self.lines += other.lines
        self.input_tokens += other.input_tokens
        self.max_input_tokens += other.max_input_tokens
        self.output_tokens += other.output_tokens
        self.max_output_tokens += other.max_output_tokens

    def add(self, line: GoodLine) -> None:
        request, window = line.request, self.model.context_window
        counted, most = request.input_tokens(tokens.count), request.input_tokens(tokens.most)
        self.lines += 1
        if not request.choices:
            # Each document is read together with the query, so all of them may exceed the window.
            self.input_tokens += counted
            self.max_input_tokens += most
            return
        # The lowest input count leaves the most room for an answer: this bounds the maximum.
        room = max(window - int(counted * LEAST_SHARE), 1)
        longest = min(request.longest_answer or room, window)
        self.input_tokens += min(counted, window)
        self.max_input_tokens += min(most, window)
        self.output_tokens += request.choices * min(longest, EXPECTED_ANSWER)
        self.max_output_tokens += request.choices * longest

    @property
    def expected_cost(self) -> Decimal:
        return self._cost(self.input_tokens, self.output_tokens)

    @property
    def max_cost(self) -> Decimal:
        return self._cost(self.max_input_tokens, self.max_output_tokens)

    @money.exact
    def _cost(self, read: int, written: int) -> Decimal:
        # Tokens of a component without a price are not billed.
        gross = Decimal(0)
        for component, count in (("input", read), ("output", written)):
            if component in self.price:
                gross += money.gross(count, Decimal(self.price[component]))
        return gross + money.discount(gross, self.discount_rate)

    def render(self) -> dict[str, Any]:
        return {
            "model": self.model.id,
            "lines": self.lines,
            "input_tokens": self.input_tokens,
            "max_input_tokens": self.max_input_tokens,
            "expected_output_tokens": self.output_tokens,
            "max_output_tokens": self.max_output_tokens,
            "expected_cost": money.render(self.expected_cost),
            "max_cost": money.render(self.max_cost),
        }


@dataclass
class Estimate:
    """The good lines by model, and the faults. Costs are exact, in USD."""

    endpoint: str | None
    discount_rate: Decimal
    models: dict[str, ModelEstimate] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    # The fault of each model that the terms refuse.
    refused: dict[str, Fault] = field(default_factory=dict)

    def add(self, line: GoodLine, models: Mapping[str, Model], terms: Terms) -> None:
        self.endpoint = line.endpoint
        if line.model not in self.models:
            if line.model in self.refused:
                return
            fault = refused(line.model, terms)
            if fault:
                self.refused[line.model] = fault
                return
            self.models[line.model] = ModelEstimate(
                models[line.model], terms.prices[line.model], self.discount_rate
            )
        self.models[line.model].add(line)

    def extend(self, other: "Estimate", lines_before: int) -> None:
        """Append the estimate of the file's next piece, whose lines are numbered from 1."""
        self.endpoint = other.endpoint or self.endpoint
        self.faults.extend(other.faults, lines_before)
        for name, share in other.models.items():
            if name in self.models:
                self.models[name].extend(share)
            else:
                self.models[name] = share
        self.refused |= other.refused

    def end(self) -> None:
        """Add the faults of refused models; call it once, after the last line."""
        for _, fault in sorted(self.refused.items()):
            self.faults.add(fault)

    @property
    def is_valid(self) -> bool:
        """Whether a batch of this file would be accepted."""
        return not self.faults

    @property
    def lines(self) -> int:
        return sum(share.lines for share in self.models.values())

    @property
    @money.exact
    def expected_cost(self) -> Decimal:
        return sum((share.expected_cost for share in self.models.values()), Decimal(0))

    @property
    @money.exact
    def max_cost(self) -> Decimal:
        return sum((share.max_cost for share in self.models.values()), Decimal(0))

    def render(self) -> dict[str, Any]:
        """The JSON object of the API and of `--json`, with money as strings.

        `lines` and the costs count good lines only.
        """
        return {
            "object": "batch.estimate",
            "valid": self.is_valid,
            "endpoint": self.endpoint,
            "lines": self.lines,
            "error_count": self.faults.count,
            "errors": {"object": "list", "data": self.faults.render()},
            "models": [share.render() for share in self.models.values()],
            "currency": money.CURRENCY,
            "discount_rate": str(self.discount_rate),
            "expected_cost": money.render(self.expected_cost),
            "max_cost": money.render(self.max_cost),
        }


def estimate(
    chunks: Iterable[bytes],
    *,
    endpoint: str | None,
    models: Mapping[str, Model],
    terms: Terms,
    discount_rate: Decimal,
    limits: Settings | None = None,
) -> Estimate:
    """Read a file as a batch on these terms would, without running it.

    `endpoint` None: the first line's url counts for the whole file, and is `Estimate.endpoint`.
    `limits` None: those of the settings.
    """
    result = Estimate(endpoint, discount_rate)
    for line in scan(chunks, endpoint=endpoint, models=models, limits=limits):
        if isinstance(line, Fault):
            result.faults.add(line)
        else:
            result.add(line, models, terms)
    result.end()
    return result

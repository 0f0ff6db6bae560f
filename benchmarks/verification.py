"""A run that is wrong is not fast: what is checked after each one."""

import itertools
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.lines import CHAT, CHAT_MODEL, RERANK_MODEL, Input, custom_ids
from benchmarks.mock.server import Stats
from xalen_batch.catalog import read

DISCOUNT = Decimal("0.5")


class Wrong(Exception):
    """What was measured did not do its work."""


class _Result(msgspec.Struct):
    custom_id: str


_result = msgspec.json.Decoder(_Result).decode


def expect(holds: bool, message: str) -> None:
    if not holds:
        raise Wrong(message)


def check_counts(batch: dict[str, Any], lines: int) -> None:
    expect(batch["status"] == "completed", f"the batch is {batch['status']}: {batch.get('errors')}")
    counts = batch["request_counts"]
    expect(
        counts == {**counts, "total": lines, "completed": lines, "failed": 0},
        f"{lines} lines became {counts}",
    )


def check_answered(stats: Stats, lines: int) -> None:
    """Each line was answered once: none was left out, none was sent again after its answer."""
    expect(
        stats.answered == lines,
        f"the mock server answered {stats.answered} requests for {lines} lines",
    )


def check_invoices(invoices: list[dict[str, Any]], stats: Stats, endpoint: str) -> None:
    """The invoices' totals are what the mock server's usage costs, to the last digit."""
    price = read(None)[CHAT_MODEL if endpoint == CHAT else RERANK_MODEL].price
    gross = stats.input_tokens * (price.input or Decimal(0)) + stats.output_tokens * (
        price.output or Decimal(0)
    )
    due = gross / 1_000_000 * (1 - DISCOUNT)
    billed = sum(Decimal(invoice["total"]) for invoice in invoices)
    expect(billed == due, f"billed {billed}, and the usage costs {due}")


def check_output(output: Path, input_: Input) -> None:
    """The output file holds every line of the input once, in the input's order."""
    with output.open("rb") as file:
        found: Iterator[str] = (_result(line).custom_id for line in file)
        for is_, ought in itertools.zip_longest(found, custom_ids(input_)):
            expect(is_ == ought, f"the output has {is_} where {ought} belongs")

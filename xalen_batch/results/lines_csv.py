"""A batch's lines as CSV: their tokens, prices, discount and amount, which sum to its invoice."""

from collections.abc import Iterator, Sequence

from xalen_batch import csv_rows, money
from xalen_batch.billing.charges import COMPONENTS, ZERO
from xalen_batch.models import Batch
from xalen_batch.results import charged_lines, explain
from xalen_batch.results.charged_lines import ChargedLine
from xalen_batch.results.explain import Component, Ended

# Lines that are rendered at a time: less than MiB, also if their custom ids are long.
PIECE_LINES = 1_000
COLUMNS = (
    "line",
    "custom_id",
    "model",
    "status",
    "reason",
    "flag",
    *(f"{component}_{what}" for component in COMPONENTS for what in ("tokens", "unit_price")),
    "subtotal",
    "discount_rate",
    "discount",
    "amount",
    "currency",
)
# The tokens and the unit price of a component without tokens.
UNUSED = ("0", "")
NOTHING = money.render(ZERO)


def pieces(batch: Batch) -> Iterator[bytes]:
    """The lines of an ended batch as CSV, with a header, in pieces of less than MiB.

    For each line, `subtotal` is the sum of its tokens × unit price ÷ 1,000,000, `discount` is minus
    `discount_rate` × `subtotal`, and `amount` is their sum, all exact. The amounts sum to the
    invoice's total, and the tokens of a component to its quantities there. A line that is not
    billed has no tokens here, and the amount 0.
    """
    yield csv_rows.render([COLUMNS])
    for page in charged_lines.pages(batch):
        for start in range(0, len(page), PIECE_LINES):
            yield csv_rows.render([_row(batch, line) for line in page[start : start + PIECE_LINES]])


def _row(batch: Batch, line: ChargedLine) -> Sequence[str]:
    ended = line.ended
    return (
        str(line.number),
        csv_rows.text(line.custom_id),
        csv_rows.text(ended.model),
        ended.state,
        line.reason or "",
        line.flag or "",
        *_charge(batch, ended),
        money.CURRENCY,
    )


def _charge(batch: Batch, ended: Ended) -> Iterator[str]:
    """The cells of the components, the discount and the amount."""
    rate = f"{batch.discount_rate:f}"
    if ended.amount is None:
        yield from UNUSED * len(COMPONENTS)
        yield from (NOTHING, rate, NOTHING, NOTHING)
        return
    charge = explain.charge_of(
        batch.price_snapshot.get(ended.model, {}), batch.discount_rate, ended
    )
    used = {each.name: each for each in charge.components or ()}
    for name in COMPONENTS:
        yield from UNUSED if name not in used else (str(used[name].tokens), _price(used[name]))
    subtotal = charge.subtotal
    yield "" if subtotal is None else money.render(subtotal)
    yield rate
    yield "" if subtotal is None else money.render(money.discount(subtotal, batch.discount_rate))
    yield money.render(charge.amount)


def _price(component: Component) -> str:
    return "" if component.price is None else money.render(component.price)

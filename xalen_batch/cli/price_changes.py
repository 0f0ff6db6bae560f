"""`prices set`, `prices upcoming`, `prices cancel`: prices that begin in the future."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xalen_batch.cli import database
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import grid, moment, print_list, say, show

if TYPE_CHECKING:
    from xalen_batch.billing.price_changes import Upcoming

commands = typer.Typer()

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's id in the catalog.")]
HEADS = ("model", "component", "mode", "now", "USD per 1M", "from")


def _time(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time. Write it as 2027-01-01 or 2027-01-01T08:00+01:00."
        ) from None
    return text


@commands.command(
    "set",
    epilog=examples(
        "xalen-batch prices set mistral-small-3-1 input=0.03 output=0.05 --from 2027-01-01"
    ),
)
def set_prices(
    model: Model,
    price: Annotated[
        list[str],
        typer.Argument(
            metavar="COMPONENT=USD", help="A list price in USD per 1M tokens; may be repeated."
        ),
    ],
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="TIME",
            callback=_time,
            help="When it begins, ISO 8601; UTC without an offset.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Let prices of a model begin at a time in the future, in both modes (operators).

    Batches that are created before it keep the prices of their creation. Put the new prices into
    the catalog once they are in force: `prices sync` puts the catalog's in force.
    """
    new = dict(_price(each) for each in price)
    at = datetime.fromisoformat(start)
    with database.transaction() as session:
        from xalen_batch.billing import price_changes, prices
        from xalen_batch.cli.failures import Failed

        try:
            made = price_changes.schedule(
                session, model, new, at if at.tzinfo else at.replace(tzinfo=UTC)
            )
        except prices.Refused as error:
            raise Failed(str(error)) from None
    _print(made, as_json)


def _price(text: str) -> tuple[str, Decimal]:
    component, _, price = text.partition("=")
    try:
        return component, Decimal(price)
    except InvalidOperation:
        raise typer.BadParameter(
            f"{text!r} is no price. Write it as input=0.03.", param_hint="COMPONENT=USD"
        ) from None


@commands.command(epilog=examples("xalen-batch prices upcoming"))
def upcoming(as_json: Json = False) -> None:
    """List the prices that begin in the future (operators)."""
    with database.transaction() as session:
        from xalen_batch.billing import price_changes

        found = price_changes.upcoming(session)
    _print(found, as_json)
    if not found and not as_json:
        say("No price begins in the future.")


@commands.command(epilog=examples("xalen-batch prices cancel mistral-small-3-1"))
def cancel(model: Model, as_json: Json = False) -> None:
    """Cancel the prices of a model that have not begun; those in force go on (operators)."""
    with database.transaction() as session:
        from xalen_batch.billing import price_changes

        gone = price_changes.cancel(session, model)
    _print(gone, as_json)
    if not as_json:
        say("These prices will not begin.")


def _print(prices: "Sequence[Upcoming]", as_json: bool) -> None:
    from xalen_batch import money

    def shown(price: Decimal | None) -> str | None:
        return None if price is None else money.render(price)

    rows: list[dict[str, Any]] = [
        {
            "model": each.model,
            "component": each.component,
            "livemode": each.livemode,
            "old": shown(each.old),
            "new": shown(each.new),
            "starts_at": each.starts_at.isoformat(timespec="seconds"),
        }
        for each in prices
    ]
    if as_json:
        print_list(rows)
    elif rows:
        cells = [
            (
                row["model"],
                row["component"],
                "live" if row["livemode"] else "test",
                row["old"] or "-",
                row["new"],
                moment(int(datetime.fromisoformat(row["starts_at"]).timestamp())),
            )
            for row in rows
        ]
        show(grid(HEADS, cells, right=("now", "USD per 1M")))

"""`prices`: list prices of this machine's catalog, and of the database over time."""

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xalen_batch.cli import database, price_changes
from xalen_batch.cli.failures import ERROR, USAGE, Failed
from xalen_batch.cli.group import Group
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import counted, grid, moment, print_list, say, show
from xalen_batch.cli.stacked import Layout, stacked

if TYPE_CHECKING:
    from xalen_batch.billing.prices import Change

UNIT = "USD per 1M tokens, list price; a batch costs less (XALEN_BATCH_DISCOUNT)"

PRICES: tuple[Layout, ...] = (
    (("model",), ("component",), ("mode",), ("USD per 1M",), ("from",), ("to",)),
    (("model", "component"), ("mode",), ("USD per 1M",), ("from", "to")),
)

commands = typer.Typer(
    cls=Group,
    help="List prices: of the catalog, or (operators) of the database over time.",
    epilog=examples("xalen-batch prices"),
)
commands.add_typer(price_changes.commands)


@commands.callback(invoke_without_command=True)
def catalog_prices(context: typer.Context, as_json: Json = False) -> None:
    """List prices of the catalog on this machine; `list` and `sync` work on the database
    (operators).
    """
    if context.invoked_subcommand is not None:
        return
    from xalen_batch import catalog
    from xalen_batch.catalog import ListPrice

    found = [
        {"model": model.id} | model.price.model_dump(mode="json")
        for model in catalog.models().values()
    ]
    if as_json:
        print_list(found)
        return
    components = tuple(ListPrice.model_fields)
    rows = [
        (price["model"], *(price[component] or "-" for component in components)) for price in found
    ]
    heads = tuple(component.replace("_", " ") for component in components)
    show(grid(("model", *heads), rows, right=heads))
    say(UNIT, style="dim")


@commands.command(
    "list",
    epilog=examples(
        "xalen-batch prices list", "xalen-batch prices list --model bge-reranker-v2 --json"
    ),
)
def list_prices(
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Only this model.")] = None,
    as_json: Json = False,
) -> None:
    """List every price in the database, past, present and upcoming, with its time (operators)."""
    with database.transaction() as session:
        from xalen_batch import money
        from xalen_batch.billing import prices

        rows: list[dict[str, Any]] = [
            {
                "model": price.model,
                "component": price.component,
                "livemode": price.livemode,
                "usd_per_million": money.render(price.usd_per_million),
                "valid_from": price.valid_from.isoformat(timespec="seconds"),
                "valid_to": price.valid_to and price.valid_to.isoformat(timespec="seconds"),
            }
            for price in prices.history(session)
            if model in (None, price.model)
        ]
    if as_json:
        print_list(rows)
        return
    if not rows:
        say(
            "No prices yet. `xalen-batch migrate` puts the catalog's in force."
            if model is None
            else f"{model} has had no price."
        )
        return
    cells = [
        (
            row["model"],
            row["component"],
            "live" if row["livemode"] else "test",
            row["usd_per_million"],
            _at(row["valid_from"]),
            _at(row["valid_to"]) if row["valid_to"] else "",
        )
        for row in rows
    ]
    show(stacked(PRICES, cells, right=("USD per 1M",)))


def _at(iso: str) -> str:
    return moment(int(datetime.fromisoformat(iso).timestamp()))


@commands.command(
    epilog=examples(
        "xalen-batch prices sync",
        "XALEN_CATALOG=catalog.toml xalen-batch prices sync --yes",
        "XALEN_CATALOG=catalog.toml xalen-batch prices sync --close old-model",
        "xalen-batch prices sync --yes --json",
    )
)
def sync(
    is_yes: Annotated[bool, typer.Option("--yes", help="Change them without asking.")] = False,
    close: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="End the prices of this model that the catalog lacks; may be repeated.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how prices in force differ from the catalog on this machine, and put the catalog's in
    force (operators).

    Batches that exist keep theirs. Without a terminal, --yes is needed. Each model whose price
    would end needs --close, because this catalog may not be the server's. Otherwise nothing is
    changed, and the exit code is 2.
    """
    with database.transaction() as session:
        from xalen_batch import catalog
        from xalen_batch.billing import prices

        changes, source = prices.differences(session), catalog.source()
    ending = {change.model for change in prices.closings(changes)}
    if strangers := sorted(set(close or []) - ending):
        raise Failed(f"--close {strangers[0]}: that would end no price. Leave it out.", USAGE)
    if not changes:
        if as_json:
            print_list([])
        say(f"The prices are those of {source}.")
        return
    if not as_json:
        _show(changes)
    if missing := sorted(ending - set(close or [])):
        options = " ".join(f"--close {model}" for model in missing)
        raise Failed(
            f"Nothing was changed. Prices of {', '.join(missing)} are in force and not in {source}."
            " Name the server's catalog in XALEN_CATALOG; or, if they are to end: xalen-batch"
            f" prices sync {options}",
            USAGE,
        )
    if not is_yes and not _is_agreed(len(changes), source):
        say("Nothing was changed.")
        raise typer.Exit(ERROR)
    with database.transaction() as session:
        try:
            prices.sync(session, changes)
        except prices.Refused as error:
            raise Failed(str(error)) from None
    if as_json:
        print_list([_rendered(change) for change in changes])
    say(
        f"{counted(len(changes), 'price')} changed, to those of {source}. `xalen-batch audit` has"
        " them."
    )


def _show(changes: "Sequence[Change]") -> None:
    rows = [
        (
            change.model,
            change.component,
            "live" if change.livemode else "test",
            _price(change.old),
            _price(change.new),
        )
        for change in changes
    ]
    show(
        grid(
            ("model", "component", "mode", "in force", "in the catalog"),
            rows,
            right=("in force", "in the catalog"),
        )
    )
    say("USD per 1M tokens", style="dim")


def _rendered(change: "Change") -> dict[str, Any]:
    """Prices in USD per 1M tokens, as strings; None for a model without a price."""
    old, new = (None if price is None else _price(price) for price in (change.old, change.new))
    return {
        "model": change.model,
        "component": change.component,
        "livemode": change.livemode,
        "old": old,
        "new": new,
    }


def _price(price: Any) -> str:
    return "-" if price is None else f"{price:f}"


def _is_agreed(changes: int, source: str) -> bool:
    if not _has_terminal():
        raise Failed(
            "Nothing was changed: there is no terminal to ask on. Run it again with --yes to change"
            " the prices.",
            USAGE,
        )
    return typer.confirm(f"Change {counted(changes, 'price')} to those of {source}?", err=True)


def _has_terminal() -> bool:
    return sys.stdin.isatty()

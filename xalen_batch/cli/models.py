"""`models`, `prices`: what can run, and what it costs."""

from datetime import datetime
from typing import Annotated, Any

import typer

from xalen_batch.cli import database
from xalen_batch.cli.client import connect
from xalen_batch.cli.options import ApiKey, BaseUrl, Json, Live, examples
from xalen_batch.cli.output import grid, moment, print_json, say, show

UNIT = "USD per 1M tokens, list price; a batch costs less (XALEN_BATCH_DISCOUNT)"

commands = typer.Typer()
prices = typer.Typer(help="List prices: of the catalog, or (operators) of the database over time.", epilog=examples("xalen-batch prices"))


@commands.command(epilog=examples("xalen-batch models", "xalen-batch models --local", "xalen-batch models --json"))
def models(
    local: Annotated[bool, typer.Option("--local", help="The catalog on this machine; needs no server.")] = False,
    as_json: Json = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    live: Live = False,
) -> None:
    """List the models that the API serves."""
    if local:
        _local_models(as_json)
        return
    client = connect(base_url, api_key, live)
    found = client.get("/models")
    if as_json:
        print_json(found)
    else:
        show(grid(("id", "owned by"), [(model["id"], model["owned_by"]) for model in found["data"]]))


def _local_models(as_json: bool) -> None:
    from xalen_batch import catalog

    found = catalog.models().values()
    if as_json:
        print_json([model.model_dump(mode="json", exclude={"backend"}) for model in found])
        return
    rows = [
        (model.id, model.name, model.parameters, model.context_window, f"{model.latency_ms} ms", ", ".join(model.endpoints))
        for model in found
    ]
    show(grid(("id", "name", "size", "context", "latency", "endpoints"), rows, right=("size", "context", "latency")))


@prices.callback(invoke_without_command=True)
def catalog_prices(context: typer.Context, as_json: Json = False) -> None:
    """List prices of the catalog on this machine; `list` and `sync` work on the database (operators)."""
    if context.invoked_subcommand is not None:
        return
    from xalen_batch import catalog

    found = {model.id: model.price.model_dump(mode="json") for model in catalog.models().values()}
    if as_json:
        print_json(found)
        return
    rows = [(id, price["input"] or "-", price["output"] or "-") for id, price in found.items()]
    show(grid(("model", "input", "output"), rows, right=("input", "output")))
    say(UNIT, style="dim")


@prices.command("list", epilog=examples("xalen-batch prices list", "xalen-batch prices list --model bge-reranker-v2 --json"))
def list_prices(model: Annotated[str | None, typer.Option(help="Only this model.")] = None, as_json: Json = False) -> None:
    """List every price the database has had, with its time (operators)."""
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
        print_json(rows)
        return
    cells = [
        (
            row["model"],
            row["component"],
            "live" if row["livemode"] else "test",
            row["usd_per_million"],
            _at(row["valid_from"]),
            _at(row["valid_to"]) if row["valid_to"] else "now",
        )
        for row in rows
    ]
    show(grid(("model", "component", "mode", "USD per 1M", "from", "to"), cells, right=("USD per 1M",)))


def _at(iso: str) -> str:
    return moment(int(datetime.fromisoformat(iso).timestamp()))


@prices.command(epilog=examples("xalen-batch prices sync", "XALEN_CATALOG=catalog.toml xalen-batch prices sync"))
def sync() -> None:
    """Bring the database's prices in line with the catalog (operators). Batches that exist keep theirs."""
    with database.transaction() as session:
        from xalen_batch.billing import prices

        prices.sync(session)
    say("The prices are those of the catalog.")

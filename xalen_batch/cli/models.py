"""`models`: the models, their prices, and their backends."""

from decimal import Decimal
from typing import Annotated

import typer

from xalen_batch.cli.client import ApiOptions
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import figure, print_list, say, show
from xalen_batch.cli.stacked import Layout, stacked

MODELS: tuple[Layout, ...] = (
    (
        ("id",),
        ("context",),
        ("endpoints",),
        ("input",),
        ("cached input",),
        ("output",),
        ("answered by",),
    ),
    (
        ("id", "answered by"),
        ("endpoints",),
        ("context",),
        ("input", "cached input"),
        ("output",),
    ),
)
CATALOG: tuple[Layout, ...] = (
    (("id",), ("name",), ("size",), ("context",), ("latency",), ("endpoints",), ("live backend",)),
    (("id", "name"), ("endpoints", "live backend"), ("size", "context", "latency")),
)

commands = typer.Typer()


@commands.command(
    epilog=examples("xalen-batch models", "xalen-batch models --local", "xalen-batch models --json")
)
@with_option_groups
def models(
    local: Annotated[
        bool, typer.Option("--local", help="List the catalog on this machine; needs no server.")
    ] = False,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """List the models of the API: prices, and the backend that answers a key of this mode."""
    if local:
        _local_models(as_json)
        return
    client = api.connect()
    terms = client.get("/terms")
    if as_json:
        of_model = {model["id"]: model for model in terms["models"]}
        found = client.get("/models")
        print_list([model | of_model.get(model["id"], {}) for model in found["data"]])
        return
    rows = [
        (
            model["id"],
            figure(model["context_window"]),
            ", ".join(model["endpoints"]),
            model["price"].get("input", "-"),
            model["price"].get("cached_input", "-"),
            model["price"].get("output", "-"),
            model["answered_by"] or "nothing: refused",
        )
        for model in terms["models"]
    ]
    show(
        stacked(
            MODELS,
            rows,
            right=("context", "input", "cached input", "output"),
            folded=("endpoints", "answered by"),
        )
    )
    say(
        f"USD per 1M tokens, list price; a batch costs {Decimal(terms['batch_discount']):.0%}"
        " less.",
        style="dim",
    )


def _local_models(as_json: bool) -> None:
    from xalen_batch import catalog

    found = catalog.models().values()
    if as_json:
        print_list([model.model_dump(mode="json", exclude={"backend"}) for model in found])
        return
    rows = [
        (
            model.id,
            model.name,
            model.parameters,
            figure(model.context_window),
            f"{model.latency_ms} ms",
            ", ".join(model.endpoints),
            model.backend.kind or "-",
        )
        for model in found
    ]
    show(stacked(CATALOG, rows, right=("size", "context", "latency"), folded=("name", "endpoints")))

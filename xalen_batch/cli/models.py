"""`models`: the models, their prices, and their backends."""

import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xalen_batch.cli.client import ApiOptions
from xalen_batch.cli.failures import ERROR, USAGE, Failed
from xalen_batch.cli.group import Group
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import fields, figure, print_json, print_line, print_list, say, show
from xalen_batch.cli.stacked import Layout, stacked

if TYPE_CHECKING:
    from xalen_batch.catalog import Model
    from xalen_batch.cli.model_servers.add import Found

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

commands = typer.Typer(
    cls=Group,
    help="List the models of the API; add a model server to the catalog (operators).",
    epilog=examples(
        "xalen-batch models", "xalen-batch models --local", "xalen-batch models --json"
    ),
)


@commands.callback(invoke_without_command=True)
@with_option_groups
def models(
    context: typer.Context,
    local: Annotated[
        bool, typer.Option("--local", help="List the catalog on this machine; needs no server.")
    ] = False,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """List the models of the API: prices, and the backend that answers a key of this mode; `show`
    and `add` work on the catalog of this machine (operators).
    """
    if context.invoked_subcommand is not None:
        return
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


@commands.command(
    "show",
    epilog=examples(
        "xalen-batch models show mistral-small-3-1",
        "xalen-batch models show mistral-small-3-1 --json",
    ),
)
def show_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Its id in the catalog.")],
    as_json: Json = False,
) -> None:
    """Show a model of the catalog on this machine, without secrets (operators)."""
    from xalen_batch import catalog

    found = catalog.models().get(model)
    if found is None:
        raise Failed(
            f"The catalog has no model {model}. It has {', '.join(catalog.models())}.", USAGE
        )
    shown = _shown(found)
    if as_json:
        print_json(shown)
        return
    backend = shown.pop("backend")
    pairs = [*shown.items(), *((f"backend.{name}", value) for name, value in backend.items())]
    show(fields((name, _text(value)) for name, value in pairs if value not in (None, [], {})))
    say(f"Of {catalog.source()}.", style="dim")


def _shown(model: "Model") -> dict[str, Any]:
    """The entry without the values of headers, and without users and passwords in addresses."""
    from xalen_batch.catalog_backend import shown

    found = model.model_dump(mode="json")
    backend = found["backend"]
    if backend["base_url"]:
        backend["base_url"] = shown(backend["base_url"])
    backend["base_urls"] = [shown(url) for url in backend["base_urls"]]
    backend["headers"] = {
        name: value if isinstance(value, dict) else "set"
        for name, value in backend["headers"].items()
    }
    return found


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{name} {_text(item)}" for name, item in value.items() if item is not None
        )
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


@commands.command(
    "add",
    epilog=examples(
        "xalen-batch models add http://host:8000/v1 --price input=0.03,output=0.09",
        "xalen-batch models add http://localhost:11434 --model llama3.2 --price"
        " input=0,output=0 --yes",
        "xalen-batch models add https://host/v1 --as big --api-key-env BIG_KEY --price"
        " input=0.5,output=1.5 --yes --json",
    ),
)
def add_model(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Address of the server, http://host:8000/v1.")
    ],
    name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Its id here. If not given: from the server's."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The model of a server that has several."),
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(
            metavar="PRICES", help="USD per 1M tokens, list price: input=0.02,output=0.04."
        ),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="VARIABLE", help="Environment variable that holds the server's key."),
    ] = None,
    context_window: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="TOKENS", help="Longest prompt. If not given: what the server says."
        ),
    ] = None,
    no_ramp: Annotated[
        bool, typer.Option("--no-ramp", help="Do not measure how many requests at a time.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the backend that the catalog file has.")
    ] = False,
    is_yes: Annotated[bool, typer.Option("--yes", help="Write without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Find out what a model server has, and write it into the catalog file (operators).

    Sends one tiny request to each endpoint, and a short ramp of requests to propose max_in_flight.
    Running processes follow the file; the prices come in force if nothing else would change.
    Without a terminal, --yes is needed.
    """
    from xalen_batch import catalog
    from xalen_batch.cli.model_servers import add, entry, prices

    if not is_yes and not sys.stdin.isatty():
        raise Failed("There is no terminal to ask on. Run it again with --yes to write.", USAGE)
    file = catalog.file()
    wanted = add.Wanted(
        url=url,
        name=name,
        model=model,
        prices=entry.prices_of(price),
        api_key_env=api_key_env,
        context_window=context_window,
        with_ramp=not no_ramp,
        is_replacing=replace,
    )
    found = add.find_out(wanted, file, lambda text: say(text, style="dim"))
    add.checked(file, found)
    text = entry.rendered(found.name, found.fields)
    if not as_json:
        _say_found(found)
        for line in text.splitlines():
            print_line(line)
    if not is_yes and not typer.confirm(f"Write this into {file}?", err=True):
        say("Nothing was written.")
        raise typer.Exit(ERROR)
    entry.write(file, found.name, found.fields)
    in_force = prices.put_in_force(found.name)
    if as_json:
        print_json(
            {
                "model": found.name,
                "server": {"kind": found.kind.name, "version": found.kind.version},
                "endpoints": found.probed.endpoints,
                "errors": found.probed.errors,
                "file": str(file),
                "entry": found.fields,
                "prices_in_force": in_force is None,
            }
        )
    say(f"Written into {file}; running processes follow within seconds.")
    say("Its prices are in force." if in_force is None else in_force)


def _say_found(found: "Found") -> None:
    version = f" {found.kind.version}" if found.kind.version else ""
    say(f"{found.kind.name}{version} with {found.model.id}")
    for endpoint in found.probed.endpoints:
        say(f"  {endpoint} answers")
    for endpoint, error in found.probed.errors.items():
        say(f"  {endpoint} does not: {error.partition(chr(10))[0][:120]}", style="dim")
    if found.model.note:
        say(f"  context_window is {found.model.note}.", style="yellow")
    say(f"  max_in_flight: {found.in_flight_reason}")

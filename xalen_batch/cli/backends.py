"""`backends`: tests of the model servers (operators)."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xalen_batch.cli.failures import ERROR, USAGE, Failed
from xalen_batch.cli.group import Group
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import grid, print_list, say, show

if TYPE_CHECKING:
    from xalen_batch.catalog import Model

# Bounds of a test of one server.
SECONDS, REQUESTS = 10.0, 300
# Ports of vLLM, llama.cpp and TEI, LM Studio, Ollama, SGLang, and others that are often used.
USUAL_PORTS = (8000, 8001, 8080, 8081, 8082, 1234, 3000, 5000, 9000, 11434, 30000)
SCAN_TIMEOUT = 2.0

commands = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="Test the model servers of the catalog, or find those of this machine.",
    epilog=examples("xalen-batch backends test", "xalen-batch backends scan"),
)


@commands.command(
    "test",
    epilog=examples(
        "xalen-batch backends test",
        "xalen-batch backends test mistral-small-3-1",
        "xalen-batch backends test --no-ramp --json",
    ),
)
def try_backends(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Only this model; all with a server if left out."),
    ] = None,
    no_ramp: Annotated[
        bool, typer.Option("--no-ramp", help="Send two requests to each server, and no more.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send requests to each server of the catalog as a worker does: whether it answers, how fast,
    and the first error as the server wrote it.

    A ramp of at most 10 s and 300 requests for each server. Exit 1 if one does not answer.
    """
    found = [
        _tested(each, url, with_ramp=not no_ramp)
        for each in _models(model)
        for url in each.backend.urls
    ]
    if as_json:
        print_list(found)
    else:
        _show(found)
    if not all(row["ok"] for row in found):
        raise typer.Exit(ERROR)


def _models(model: str | None) -> "list[Model]":
    from xalen_batch import catalog

    known = catalog.models()
    if model is not None and model not in known:
        raise Failed(f"The catalog has no model {model}. It has {', '.join(known)}.", USAGE)
    chosen = [each for each in known.values() if model in (None, each.id)]
    found = [each for each in chosen if each.backend.urls]
    if not found:
        raise Failed(
            f"{model or 'No model'} has {'no' if model else 'a'} server in {catalog.source()}."
            " `xalen-batch models add URL` adds one.",
            USAGE,
        )
    return found


def _tested(model: "Model", url: str, *, with_ramp: bool) -> dict[str, Any]:
    from xalen_batch.backends import trial
    from xalen_batch.catalog_backend import shown
    from xalen_batch.errors import ConfigError

    # A reranker's chats become rankings.
    endpoint = "/v1/rerank" if model.is_reranker else model.endpoints[0]
    say(f"Testing {model.id} at {shown(url)} …", style="dim")
    try:
        found = trial.run(
            model,
            url,
            endpoint,
            most=model.backend.max_in_flight if with_ramp else 1,
            seconds=SECONDS,
            requests=REQUESTS if with_ramp else 2,
        )
    except ConfigError as error:
        found = trial.Trial(error=str(error))
    best = found.best
    return {
        "model": model.id,
        "server": shown(url),
        "endpoint": endpoint,
        "ok": found.latency is not None,
        "latency_ms": None if found.latency is None else round(found.latency * 1000, 1),
        "answers_per_second": None if best is None else round(best.answers, 1),
        "tokens_per_second": None if best is None else round(best.tokens, 1),
        "in_flight": None if best is None else best.in_flight,
        "max_in_flight": model.backend.max_in_flight,
        "requests": found.sent,
        "error": found.error,
    }


def _show(found: list[dict[str, Any]]) -> None:
    rows = [
        (
            row["model"],
            row["server"],
            "works" if row["ok"] else "does not work",
            *(
                "-" if row[name] is None else row[name]
                for name in ("latency_ms", "answers_per_second", "tokens_per_second", "in_flight")
            ),
        )
        for row in found
    ]
    headers = ("model", "server", "finding", "ms", "answers/s", "tokens/s", "in flight")
    show(grid(headers, rows, right=headers[3:]))
    for row in found:
        if row["error"]:
            say(f"{row['model']} at {row['server']}: {row['error']}", style="red")


@commands.command(epilog=examples("xalen-batch backends scan", "xalen-batch backends scan --json"))
def scan(as_json: Json = False) -> None:
    """Look for model servers at the usual ports of this machine.

    The exit code is 0 as well if it finds none.
    """
    with ThreadPoolExecutor(len(USUAL_PORTS)) as pool:
        looked = pool.map(_at_port, USUAL_PORTS)
    found = [server for server in looked if server is not None]
    if as_json:
        print_list(found)
        return
    if not found:
        say(f"No model server at the ports {', '.join(map(str, USUAL_PORTS))} of this machine.")
        return
    rows = [
        (server["url"], server["kind"], server["version"] or "-", ", ".join(server["models"]))
        for server in found
    ]
    show(grid(("server", "kind", "version", "models"), rows))
    say("`xalen-batch models add URL` adds one to the catalog.", style="dim")


def _at_port(port: int) -> dict[str, Any] | None:
    from xalen_batch.cli.model_servers import kinds
    from xalen_batch.cli.model_servers.server import Server

    def at(url: str) -> Server:
        return Server(url, timeout=SCAN_TIMEOUT)

    try:
        found = kinds.find(at(f"http://127.0.0.1:{port}/v1"), at)
    except kinds.NotAServer:
        return None
    return {
        "url": found.base_url,
        "kind": found.name,
        "version": found.version,
        "models": [model.id for model in found.models],
    }

"""The services: `api`, `worker`, `beat`, `migrate`, `simulate`; and `version`."""

from pathlib import Path
from typing import Annotated

import typer

from xalen_batch import __version__, memory
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import print_json, say

commands = typer.Typer()
PANEL = "Server"


@commands.command(
    rich_help_panel=PANEL,
    epilog=examples("xalen-batch api", "xalen-batch api --host 0.0.0.0 --port 8080"),
)
def api(
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Address to listen on. If not given: XALEN_HOST."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, metavar="PORT", help="Port to listen on. If not given: XALEN_PORT."
        ),
    ] = None,
    fd: Annotated[
        list[int] | None,
        typer.Option(hidden=True, help="A listening socket that `up` holds, and passes on."),
    ] = None,
) -> None:
    """Serve the HTTP API, and the console if XALEN_CONSOLE is `on`."""
    import socket

    from xalen_batch.api import app
    from xalen_batch.config import settings
    from xalen_batch.console import pages

    app.serve(
        settings().host if host is None else host,
        settings().port if port is None else port,
        sockets=[socket.socket(fileno=each) for each in fd or ()],
        extend=pages.install if settings().console == "on" else lambda _: None,
    )


@commands.command(
    rich_help_panel=PANEL,
    epilog=examples("xalen-batch worker", "XALEN_WORKER_SLOTS=64 xalen-batch worker"),
)
def worker() -> None:
    """Run tasks. Start one worker for each core, on any number of machines."""
    from xalen_batch.worker.process import run_worker

    run_worker()


@commands.command(rich_help_panel=PANEL, epilog=examples("xalen-batch beat"))
def beat() -> None:
    """Send the tick that starts sweeps and due schedules. Any number may run, or none."""
    from xalen_batch.worker.process import run_beat

    run_beat()


@commands.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "xalen-batch migrate", "XALEN_DATABASE_URL=postgresql://u:p@db/xalen xalen-batch migrate"
    ),
)
def migrate() -> None:
    """Bring the database's schema and prices up to date. Safe to repeat."""
    from xalen_batch import log
    from xalen_batch import migrate as schema

    log.configure()
    schema.migrate()
    say("The database is up to date.")


@commands.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "xalen-batch simulate --port 9000",
        "xalen-batch simulate --port 9000 --latency-ms 0",
        "xalen-batch simulate --port 9000 --fault-rate 0.01 --fault 'status=429;retry_after=1'",
    ),
)
def simulate(
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, metavar="PORT", help="Port to listen on; 0 takes a free one."
        ),
    ] = 9000,
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    latency_ms: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="MS", help="Time of every answer. If not given: the catalog's."
        ),
    ] = None,
    fault_rate: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Share of the requests that get the fault."
        ),
    ] = 0.0,
    fault: Annotated[
        str,
        typer.Option(
            metavar="FAULT",
            help="The fault: status=N, hang, reset, truncate, html, empty, no_usage …",
        ),
    ] = "status=503",
    seed: Annotated[int, typer.Option(metavar="N", help="Chooses the requests that get it.")] = 0,
) -> None:
    """Serve the catalog's models, simulated, as an OpenAI-compatible model server."""
    from xalen_batch.backends.simulated import server

    memory.settle()
    try:
        server.serve(
            host, port, latency_ms=latency_ms, fault_rate=fault_rate, fault=fault, seed=seed
        )
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--fault") from None


@commands.command(
    "local-model", hidden=True, epilog=examples("xalen-batch local-model --port 9100")
)
def local_model(
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="PORT", help="Port.")],
    file: Annotated[Path | None, typer.Option("--gguf", metavar="FILE", help="The file.")] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="Its name.")] = "",
) -> None:
    """Serve a model of `up --local`: the embedding model, or a GGUF file."""
    from xalen_batch.standalone import local_models

    if file is None:
        local_models.serve_embeddings(port)
    else:
        local_models.serve_gguf(file, port, name)


@commands.command(epilog=examples("xalen-batch version", "xalen-batch version --json"))
def version(as_json: Json = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": __version__})
    else:
        typer.echo(__version__)

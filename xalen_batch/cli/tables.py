"""CSV and PDF of the API, and CSV of the database, written to a file or to stdout."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from xalen_batch.cli import download, progress
from xalen_batch.cli.client import ApiClient

Output = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="FILE", help="Where to write; - for stdout."),
]
Pdf = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write it as PDF to this file; - for stdout."),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        help="A key of the batches' metadata that becomes a column; may be repeated.",
    ),
]


def fetch(client: ApiClient, path: str, target: Path) -> None:
    """Write what the API sends to `target`. A file gets its name at the end."""
    download.check_target(target)
    with download.writer(target) as out, progress.transfer(target.name) as moved:
        client.download(path, out.write, moved, is_fixed=False)


def write(pieces: Iterator[bytes], target: Path) -> None:
    """Write pieces of CSV to `target`. A file gets its name at the end."""
    download.check_target(target)
    with download.writer(target) as out:
        for piece in pieces:
            out.write(piece)

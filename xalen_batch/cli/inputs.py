"""Input files on their way in: opened or read from stdin, and checked before anything leaves this machine."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xalen_batch.cli import progress
from xalen_batch.cli.failures import Failed

if TYPE_CHECKING:
    from xalen_batch.pipeline.estimate import Estimate

STDIN = Path("-")
CHUNK = 1024 * 1024

InputFile = Annotated[Path, typer.Argument(metavar="FILE", help="The requests, JSON Lines; `-` is stdin.", allow_dash=True)]
Endpoint = Annotated[
    str, typer.Option(help="The endpoint that every line asks for; `auto` takes it from the first line.", metavar="auto|/v1/…")
]
AUTO = "auto"


@contextmanager
def opened(file: Path) -> Iterator[Path]:
    """A path that can be read twice: the file itself, or what stdin held, for as long as the command runs."""
    if file != STDIN:
        if not file.is_file():
            raise Failed(f"{file} is not a file. Name a JSON Lines file, or `-` for stdin.")
        yield file
        return
    with tempfile.NamedTemporaryFile(prefix="xalen-batch-", suffix=".jsonl") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy, CHUNK)
        copy.flush()
        yield Path(copy.name)


def name_of(file: Path) -> str:
    """What the file is called on the server and in messages."""
    return "stdin.jsonl" if file == STDIN else file.name


def estimated(path: Path, endpoint: str) -> "Estimate":
    """Everything that is wrong with a file, and what it would cost: needs no server."""
    from xalen_batch import catalog
    from xalen_batch.config import settings
    from xalen_batch.pipeline.estimate import estimate

    models = catalog.models()
    prices = {
        model.id: {name: str(price) for name, price in (("input", model.price.input), ("output", model.price.output)) if price is not None}
        for model in models.values()
    }
    with progress.transfer("checking") as moved:
        result = estimate(
            _chunks(path, moved),
            endpoint=None if endpoint == AUTO else endpoint,
            models=models,
            prices=prices,
            discount_rate=settings().batch_discount,
        )
    _check_size(path, result, settings().max_file_bytes)
    return result


def _check_size(path: Path, result: "Estimate", limit: int) -> None:
    from xalen_batch.pipeline.faults import Fault

    size = path.stat().st_size
    if size > limit:
        result.faults.add(Fault("file_too_large", f"The file has {size:,} bytes; the most is {limit:,}. Split it into several files."))


def _chunks(path: Path, moved: progress.Moved) -> Iterator[bytes]:
    done = 0
    with path.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        while chunk := source.read(CHUNK):
            yield chunk
            done += len(chunk)
            moved(done, size)

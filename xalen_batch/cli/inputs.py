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
from xalen_batch.cli.failures import INTERRUPTED, Failed

if TYPE_CHECKING:
    from xalen_batch.pipeline.estimate import Estimate
    from xalen_batch.pipeline.faults import Faults

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
        try:
            shutil.copyfileobj(sys.stdin.buffer, copy, CHUNK)
            copy.flush()
        except KeyboardInterrupt:
            raise Failed("Stopped before stdin had ended; nothing was submitted.", INTERRUPTED) from None
        yield Path(copy.name)


def name_of(file: Path) -> str:
    """What the file is called on the server and in messages."""
    return "stdin.jsonl" if file == STDIN else file.name


def checked(path: Path, endpoint: str) -> tuple[str | None, "Faults"]:
    """The endpoint of a file, and everything that is wrong with it: needs no server. Much faster than an estimate."""
    from xalen_batch import catalog
    from xalen_batch.pipeline.faults import Fault, Faults
    from xalen_batch.pipeline.scan import scan

    found, faults = _named(endpoint), Faults()
    with progress.transfer("checking") as moved:
        for line in scan(_chunks(path, moved), endpoint=found, models=catalog.models()):
            if isinstance(line, Fault):
                faults.add(line)
            else:
                found = line.endpoint
    _check_size(path, faults)
    return found, faults


def estimated(path: Path, endpoint: str) -> "Estimate":
    """Everything that is wrong with a file, and what it would cost: needs no server."""
    from xalen_batch import catalog
    from xalen_batch.config import settings
    from xalen_batch.pipeline.estimate import estimate

    models = catalog.models()
    prices = {model.id: {component: str(price) for component, price in model.price if price is not None} for model in models.values()}
    with progress.transfer("estimating") as moved:
        result = estimate(
            _chunks(path, moved), endpoint=_named(endpoint), models=models, prices=prices, discount_rate=settings().batch_discount
        )
    _check_size(path, result.faults)
    return result


def _named(endpoint: str) -> str | None:
    return None if endpoint == AUTO else endpoint


def _check_size(path: Path, faults: "Faults") -> None:
    from xalen_batch.config import settings
    from xalen_batch.pipeline.faults import Fault

    size, limit = path.stat().st_size, settings().max_file_bytes
    if size > limit:
        faults.add(Fault("file_too_large", f"The file has {size:,} bytes; the most is {limit:,}. Split it into several files."))


def _chunks(path: Path, moved: progress.Moved) -> Iterator[bytes]:
    done = 0
    with path.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        while chunk := source.read(CHUNK):
            yield chunk
            done += len(chunk)
            moved(done, size)

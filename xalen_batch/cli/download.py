"""Downloads: to stdout, or to a file that is there whole or not at all."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from xalen_batch.cli import progress
from xalen_batch.cli.client import Client
from xalen_batch.cli.failures import Failed

STDOUT = Path("-")


class Delivered(NamedTuple):
    """How many lines came, and the headers that say how far they go."""

    lines: int
    headers: Mapping[str, str]


@contextmanager
def writer(target: Path) -> Iterator[BinaryIO]:
    """What to write the bytes of `target` to. A file gets its name at the end; an error leaves the old one alone."""
    if target == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as out:
            yield out
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def check_target(target: Path, source: Path | None = None) -> None:
    """Fail now rather than after hours: the folder must be there and writable, the target not the input itself."""
    if target == STDOUT:
        return
    if target.is_dir():
        raise Failed(f"{target} is a folder. Name a file with --output.")
    if not os.access(target.parent, os.W_OK):
        raise Failed(f"{target.parent} is not a folder that can be written to.")
    if source is not None and target.exists() and source.exists() and target.samefile(source):
        raise Failed(f"{target} is the input file. Name another with --output.")


def fetch(client: Client, batch_id: str, target: Path, *, errors: bool, is_ended: bool) -> Delivered:
    """Write a batch's lines that succeeded, or those that failed, to `target`."""
    part, lines = "errors" if errors else "output", 0
    with progress.transfer(part) as moved, writer(target) as out:

        def write(piece: bytes) -> None:
            nonlocal lines
            out.write(piece)
            lines += piece.count(b"\n")

        headers = client.download(f"/batches/{batch_id}/{part}", write, moved, is_fixed=is_ended)
    return Delivered(lines, headers)

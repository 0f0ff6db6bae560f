"""Downloads: to stdout, or to a file that is there whole or not at all."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
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

    @property
    def is_complete(self) -> bool:
        """Whether no more lines of the batch are to come."""
        return self.headers.get("x-batch-complete") != "false"


@contextmanager
def writer(target: Path) -> Iterator[BinaryIO]:
    """What to write the bytes of `target` to.

    A file gets its name at the end; an error leaves the old one alone.
    """
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
    """Fail now rather than after hours: the folder must be there and writable, the target not the
    input itself.
    """
    if target == STDOUT:
        return
    if target.is_dir():
        raise Failed(f"{target} is a folder. Name a file with --output.")
    if not os.access(target.parent, os.W_OK):
        raise Failed(f"{target.parent} is not a folder that can be written to.")
    if source is not None and target.exists() and source.exists() and target.samefile(source):
        raise Failed(f"{target} is the input file. Name another with --output.")


def fetch(
    client: Client, batch_id: str, target: Path, *, errors: bool, is_ended: bool
) -> Delivered:
    """Write a batch's lines that succeeded, or those that failed, to `target`."""
    lines = 0
    with writer(target) as out:

        def write(piece: bytes) -> None:
            nonlocal lines
            out.write(piece)
            lines += piece.count(b"\n")

        headers = _receive(client, batch_id, write, errors=errors, is_ended=is_ended)
    return Delivered(lines, headers)


def print_lines(client: Client, batch_id: str, *, errors: bool, is_ended: bool) -> Delivered:
    """Print a batch's lines that succeeded, or those that failed, as a list object on stdout; each
    is printed as it comes.
    """
    lines, rest = 0, b""
    with writer(STDOUT) as out:
        out.write(b'{"object": "list", "data": [')

        def write(piece: bytes) -> None:
            nonlocal lines, rest
            *whole, rest = (rest + piece).split(b"\n")
            for line in filter(None, whole):
                out.write((b",\n" if lines else b"\n") + line)
                lines += 1

        headers = _receive(client, batch_id, write, errors=errors, is_ended=is_ended)
        delivered = Delivered(lines, headers)
        out.write(b'], "has_more": %s}\n' % (b"false" if delivered.is_complete else b"true"))
    return delivered


def _receive(
    client: Client, batch_id: str, write: Callable[[bytes], None], *, errors: bool, is_ended: bool
) -> Mapping[str, str]:
    part = "errors" if errors else "output"
    with progress.transfer(part) as moved:
        return client.download(f"/batches/{batch_id}/{part}", write, moved, is_fixed=is_ended)

"""Downloads to stdout, or to a file that is replaced atomically."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from xalen_batch.cli import progress
from xalen_batch.cli.client import ApiClient
from xalen_batch.cli.failures import Failed

STDOUT = Path("-")


class Delivered(NamedTuple):
    """The number of lines received, and the headers with the progress of the batch."""

    lines: int
    headers: Mapping[str, str]

    @property
    def is_complete(self) -> bool:
        """Whether the batch will have no more lines."""
        return self.headers.get("x-batch-complete") != "false"


@contextmanager
def writer(target: Path) -> Iterator[BinaryIO]:
    """A function that writes bytes to `target`.

    A file gets its name at the end; an error leaves the old file unchanged.
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
    """Fail early if the folder is missing or not writable, or the target is the input itself."""
    if target == STDOUT:
        return
    if target.is_dir():
        raise Failed(f"{target} is a folder. Name a file with --output.")
    if not os.access(target.parent, os.W_OK):
        raise Failed(f"{target.parent} is not a folder that can be written to.")
    if source is not None and target.exists() and source.exists() and target.samefile(source):
        raise Failed(f"{target} is the input file. Name another with --output.")


def fetch(
    client: ApiClient,
    batch_id: str,
    target: Path,
    *,
    errors: bool,
    is_ended: bool,
    merged: bool = False,
) -> Delivered:
    """Write a batch's output lines, its error lines or its merged lines to `target`."""
    lines = 0
    with writer(target) as out:

        def write(piece: bytes) -> None:
            nonlocal lines
            out.write(piece)
            lines += piece.count(b"\n")

        headers = _receive(client, batch_id, write, errors=errors, is_ended=is_ended, merged=merged)
    return Delivered(lines, headers)


def print_lines(
    client: ApiClient, batch_id: str, *, errors: bool, is_ended: bool, merged: bool = False
) -> Delivered:
    """Print a batch's output, error or merged lines as one list object on stdout, as they come."""
    lines, rest = 0, b""
    with writer(STDOUT) as out:
        out.write(b'{"object": "list", "data": [')

        def write(piece: bytes) -> None:
            nonlocal lines, rest
            *whole, rest = (rest + piece).split(b"\n")
            for line in filter(None, whole):
                out.write((b",\n" if lines else b"\n") + line)
                lines += 1

        headers = _receive(client, batch_id, write, errors=errors, is_ended=is_ended, merged=merged)
        delivered = Delivered(lines, headers)
        out.write(b'], "has_more": %s}\n' % (b"false" if delivered.is_complete else b"true"))
    return delivered


def _receive(
    client: ApiClient,
    batch_id: str,
    write: Callable[[bytes], None],
    *,
    errors: bool,
    is_ended: bool,
    merged: bool,
) -> Mapping[str, str]:
    part = "errors" if errors else "output"
    path = f"/batches/{batch_id}/{part}" + ("?merged=true" if merged else "")
    with progress.transfer(part) as moved:
        # A retry that ends meanwhile changes the merged lines.
        return client.download(path, write, moved, is_fixed=is_ended and not merged)

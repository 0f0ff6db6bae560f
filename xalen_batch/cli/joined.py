"""Several input files as one: folders, compressed files and stdin, in the order that was given."""

import gzip
import io
import os
import re
import sys
import tempfile
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, BinaryIO, NamedTuple, cast

import typer

from xalen_batch.cli import progress
from xalen_batch.cli.failures import INTERRUPTED, Failed

STDIN = Path("-")
CHUNK = 1024 * 1024
# Names of the input files in a folder, and of files that `run` has written there.
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
WRITTEN = (".results.jsonl", ".errors.jsonl")
UTF8_BOM = b"\xef\xbb\xbf"
# The lines of a repeated custom id, which a message counts through the joined file.
TWO_LINES = re.compile(r" is used on line (\d+) and again on line (\d+)\.(?= Make it unique)")
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

InputFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="The requests, JSON Lines, also as .gz or .zst; `-` is stdin.",
        allow_dash=True,
    ),
]
InputFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE…",
        help=(
            "The requests, JSON Lines, also as .gz or .zst; several files or folders are one"
            " batch; `-` is stdin."
        ),
        allow_dash=True,
    ),
]


class Piece(NamedTuple):
    """A file within the joined one: its name, and the number of its first line there, from 1."""

    name: str
    first_line: int


@dataclass(frozen=True)
class Joined:
    """A file that can be read twice. `name`: on the server and in messages."""

    path: Path
    name: str
    pieces: tuple[Piece, ...]

    def placed(self, errors: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Errors with the name of their file as `file`, and their line there as `line`."""
        starts = [piece.first_line for piece in self.pieces]
        found = []
        for error in errors:
            line = error["line"]
            if line is not None and len(self.pieces) > 1:
                piece, at = self._place(starts, line)
                error = {**error, "file": piece, "line": at}
                if error.get("code") == "duplicate_custom_id":
                    error["message"] = self._both_places(starts, error["message"])
            found.append(error)
        return found

    def _both_places(self, starts: list[int], message: str) -> str:
        """A message about a repeated custom id, with files in place of lines of the joined one."""

        def places(lines: re.Match[str]) -> str:
            first, second = (
                "{}:{}".format(*self._place(starts, int(line))) for line in lines.groups()
            )
            return f" is used at {first} and again at {second}."

        return TWO_LINES.sub(places, message)

    def _place(self, starts: list[int], line: int) -> tuple[str, int]:
        piece = self.pieces[bisect_right(starts, line) - 1]
        return piece.name, line - piece.first_line + 1


@contextmanager
def joined(files: Sequence[Path]) -> Iterator[Joined]:
    """The inputs as one file: itself, or a temporary copy of several, compressed ones or stdin."""
    inputs = _expanded(files)
    name = _name(files, inputs)
    if len(inputs) == 1 and inputs[0] != STDIN and not _is_compressed(inputs[0]):
        yield Joined(inputs[0], name, (Piece(name, 1),))
        return
    with tempfile.NamedTemporaryFile(prefix="xalen-batch-", suffix=".jsonl") as copy:
        try:
            pieces = _copy(inputs, copy)
        except KeyboardInterrupt:
            raise Failed(
                "Stopped before the input was read; nothing was submitted.", INTERRUPTED
            ) from None
        yield Joined(Path(copy.name), name, tuple(pieces))


def name_of(file: Path) -> str:
    """The name of one input on the server and in messages, without that of its compression."""
    if file == STDIN:
        return "stdin.jsonl"
    return file.name.removesuffix(".gz").removesuffix(".zst")


def _name(files: Sequence[Path], inputs: Sequence[Path]) -> str:
    if len(files) == 1 and files[0] != STDIN and files[0].is_dir():
        return f"{files[0].resolve().name}.jsonl"
    first = name_of(inputs[0])
    others = len(inputs) - 1
    return first if not others else f"{first.removesuffix('.jsonl')}-and-{others}-more.jsonl"


def _expanded(files: Sequence[Path]) -> list[Path]:
    """The input files, with those of a folder in the order of their names."""
    if files.count(STDIN) > 1:
        raise Failed("stdin can be read once. Give `-` once.")
    found: list[Path] = []
    for file in files:
        if file != STDIN and file.is_dir():
            inside = sorted(filter(_is_input, file.iterdir()))
            if not inside:
                raise Failed(f"{file} holds no file whose name ends in {', '.join(SUFFIXES)}.")
            found += inside
        elif file == STDIN or file.is_file():
            found.append(file)
        else:
            raise Failed(f"{file} is not a file. Name a JSON Lines file, or `-` for stdin.")
    return found


def _is_input(path: Path) -> bool:
    is_hidden = path.name.startswith(".")
    return (
        path.name.endswith(SUFFIXES)
        and not path.name.endswith(WRITTEN)
        and not is_hidden
        and path.is_file()
    )


def _is_compressed(file: Path) -> bool:
    with file.open("rb") as source:
        return source.read(4).startswith((GZIP, ZSTD))


def _copy(inputs: Sequence[Path], copy: IO[bytes]) -> list[Piece]:
    """Write the content of the inputs one behind another, each on lines of its own."""
    pieces: list[Piece] = []
    lines = written = 0
    ends_line = True
    with progress.transfer("reading") as moved:
        for file in inputs:
            if not ends_line:
                copy.write(b"\n")
                lines += 1
            pieces.append(Piece(name_of(file), lines + 1))
            ends_line = True
            for chunk in _content(file):
                copy.write(chunk)
                lines += chunk.count(b"\n")
                ends_line = chunk.endswith(b"\n")
                written += len(chunk)
                moved(written, None)
    copy.flush()
    return pieces


def _content(file: Path) -> Iterator[bytes]:
    """The bytes of one input without compression and byte order mark. Failed if it is damaged."""
    with _opened(file) as source:
        head = source.read(4)
        plain = _plain(head, _Rest(head, source))
        try:
            chunk = plain.read(CHUNK).removeprefix(UTF8_BOM)
            while chunk:
                yield chunk
                chunk = plain.read(CHUNK)
        except (EOFError, gzip.BadGzipFile, zlib.error, _zstd().ZstdError) as error:
            raise Failed(f"{file} is damaged or cut off: {error}.") from error


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    if file == STDIN:
        yield sys.stdin.buffer
        return
    with file.open("rb") as source:
        yield source


def _plain(head: bytes, source: "_Rest") -> BinaryIO:
    if head.startswith(GZIP):
        return cast(BinaryIO, gzip.GzipFile(fileobj=io.BufferedReader(source)))
    if head.startswith(ZSTD):
        return cast(BinaryIO, _zstd().ZstdFile(io.BufferedReader(source)))
    return io.BufferedReader(source, CHUNK)


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


class _Rest(io.RawIOBase):
    """A stream whose beginning was read already. It cannot seek, as a pipe."""

    def __init__(self, head: bytes, source: BinaryIO) -> None:
        self._head = head
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head or self._source.read(len(buffer))
        self._head = data[len(buffer) :] if self._head else b""
        data = data[: len(buffer)]
        buffer[: len(data)] = data
        return len(data)


def is_same(target: Path, files: Sequence[Path]) -> Path | None:
    """The input, or the file of an input folder, that a target would overwrite."""
    if not target.exists():
        return None
    inputs = (file for file in _expanded(files) if file != STDIN)
    return next((file for file in inputs if os.path.samefile(target, file)), None)

"""The pieces of a large file, and the process that reads them.

The process starts anew for each file, so this module imports little.
"""

import gc
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Generic, NamedTuple, TypeVar

from xalen_batch import storage
from xalen_batch.catalog import Model
from xalen_batch.validation import source
from xalen_batch.validation.errors import Fault
from xalen_batch.validation.lines import GoodLine, LineReader
from xalen_batch.validation.prefix_order import PrefixHasher
from xalen_batch.validation.source import Source
from xalen_batch.validation.split import Split

T = TypeVar("T")


class SplitBuilder:
    """Adds good lines, with their prefix hashes, to a split."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.split = Split()
        self._hasher = PrefixHasher()

    def add(self, line: GoodLine) -> None:
        self.split.add(line.model, line.span, self._hasher.hashes(line.request.cacheable))


class ByteRange(NamedTuple):
    """The position of a piece: its file, and two offsets in bytes, each between two lines."""

    source: Source
    begin: int
    end: int


class Piece(NamedTuple, Generic[T]):
    """The result of reading a piece; its lines are numbered from 1.

    `requests` counts the lines that are not blank, `inputs` the inputs of embeddings in them, and
    `lines` all lines. `endpoint` is that of the lines, or
    None if the piece has none.
    """

    content: T
    custom_ids: list[str]
    requests: int
    inputs: int
    lines: int
    endpoint: str | None


class Crash(NamedTuple):
    """Sent in place of a result after an unexpected exception; `cause` is its `log.cause`.

    The process that asked then does the work itself.
    """

    cause: dict[str, str]


@dataclass(frozen=True, slots=True)
class Splitting:
    """The work of validation: read a piece into a `Split`. It can be pickled."""

    endpoint: str
    models: Mapping[str, Model]

    def __call__(self, byte_range: ByteRange) -> Piece[Split] | None:
        return read_piece(byte_range, self.endpoint, self.models)


def serve(
    connection: Connection,
    environment: Mapping[str, str],
    niceness: int,
    work: Callable[[Any], Any],
    copied: Sequence[Connection] = (),
) -> None:
    """The main loop of a reader process: send `work(argument)` for each argument that arrives.

    Ends with the connection. `niceness` is added to that of the fork server. `copied`: connections
    of the process that asks, which a fork of it closes.
    """
    for inherited in copied:
        inherited.close()
    # The fork server may be older than the settings of the process that asks.
    os.environ.clear()
    os.environ.update(environment)
    os.nice(niceness)
    # Ctrl-C in a terminal is for the process that asks, which ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Good lines leave no reference cycles, and a collection writes to every object, which would
    # copy the memory that is shared with the fork server.
    gc.disable()
    with suppress(EOFError, OSError):
        while True:
            argument = connection.recv()
            try:
                result = work(argument)
            except Exception as error:
                # The message of the exception may quote a line, so send only its cause. Imported
                # here, because only a bug needs logging.
                from xalen_batch import log

                result = Crash(log.cause(error))
            connection.send(result)


def read_piece(
    byte_range: ByteRange, endpoint: str, models: Mapping[str, Model]
) -> Piece[Split] | None:
    """Read a piece into a split; None as in `read_lines`."""
    builder = SplitBuilder(models)
    return read_lines(byte_range, LineReader(endpoint, models), builder.add, builder.split)


def read_lines(
    byte_range: ByteRange,
    reader: LineReader,
    add: Callable[[GoodLine], None],
    content: T,
    keep: Callable[[Fault], bool] = lambda _: False,
) -> Piece[T] | None:
    """Read a piece and pass each line to `add`, which collects them in `content`.

    `keep` collects a fault, or returns False for one that only a reading of the whole file can
    report. None after such a fault, or if storage fails.
    """
    try:
        for line in reader.read(source.chunks(*byte_range), start=byte_range.begin):
            if not isinstance(line, Fault):
                add(line)
            elif not keep(line):
                return None
    except storage.UNAVAILABLE:
        return None
    return Piece(
        content,
        list(reader.seen),
        reader.count,
        reader.inputs,
        reader.last_line,
        reader.endpoint,
    )

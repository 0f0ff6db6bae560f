"""Pieces of a large file, and the process that reads them.

It starts anew for each file, so this imports little.
"""

import gc
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Generic, NamedTuple, TypeVar

from xalen_batch import storage
from xalen_batch.catalog import Model
from xalen_batch.validation.errors import Fault
from xalen_batch.validation.lines import GoodLine, Reader
from xalen_batch.validation.prefix_order import Marker
from xalen_batch.validation.split import Split

T = TypeVar("T")


class Gathered:
    """Good lines on their way into a split."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.split = Split()
        self._marker = Marker()
        # They read each pair on its own, and have no prefix cache.
        self._rerankers = {model.id for model in models.values() if model.is_reranker}

    def add(self, line: GoodLine) -> None:
        self.split.add(
            line.model,
            line.span,
            () if line.model in self._rerankers else self._marker.marks(line.prompt),
        )


class Place(NamedTuple):
    """Where a piece is: the file's key, and where in it the piece begins and ends, both between two
    lines.
    """

    key: str
    begin: int
    end: int


class Piece(NamedTuple, Generic[T]):
    """What was made of good lines, read as if the file began with them. `lines` counts the blank
    ones too.

    `endpoint`: what they ask for; None if none was given and no line names one.
    """

    content: T
    custom_ids: list[str]
    lines: int
    endpoint: str | None


class Crash(NamedTuple):
    """A bug was met; `cause` is what `log.cause` says of it.

    The process that asked does the work itself.
    """

    cause: dict[str, str]


@dataclass(frozen=True, slots=True)
class Splitting:
    """The work of validation: a piece's lines as a `Split`."""

    endpoint: str
    models: Mapping[str, Model]

    def __call__(self, place: Place) -> Piece[Split] | None:
        return read_piece(place, self.endpoint, self.models)


def serve(
    connection: Connection,
    environment: Mapping[str, str],
    niceness: int,
    work: Callable[[Any], Any],
) -> None:
    """Do the work for each argument that arrives, and send its result, until the connection ends."""
    # The settings of the process that asks, wherever the fork server is from.
    os.environ.clear()
    os.environ.update(environment)
    os.nice(niceness)
    # Ctrl-C in a terminal is for the process that asks, which lets this end what it has begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Good lines leave no cycles, and a look for some would copy all memory that it shares with
    # other processes.
    gc.disable()
    with suppress(EOFError, OSError):
        while True:
            argument = connection.recv()
            try:
                result = work(argument)
            except Exception as error:
                # Its message may quote a line. That logging has to be imported does not matter
                # here.
                from xalen_batch import log

                result = Crash(log.cause(error))
            connection.send(result)


def read_piece(place: Place, endpoint: str, models: Mapping[str, Model]) -> Piece[Split] | None:
    """None as of `read_lines`."""
    gathered = Gathered(models)
    return read_lines(place, Reader(endpoint, models), gathered.add, gathered.split)


def read_lines(
    place: Place, reader: Reader, add: Callable[[GoodLine], None], content: T
) -> Piece[T] | None:
    """Add a piece's lines to its content.

    None if a line has a fault, which only a reading of the whole file can tell, or storage fails.
    """
    try:
        for line in reader.read(storage.chunks(*place), start=place.begin):
            if isinstance(line, Fault):
                return None
            add(line)
    except storage.UNAVAILABLE:
        return None
    return Piece(content, list(reader.seen), reader.last_line, reader.endpoint)

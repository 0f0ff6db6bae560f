"""Pieces of a large file, and what a process does that reads them. It starts anew for each file, so it is to import little."""

import gc
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

from xalen_batch import storage
from xalen_batch.catalog import Model
from xalen_batch.pipeline.faults import Fault
from xalen_batch.pipeline.prefix import Marker
from xalen_batch.pipeline.scan import GoodLine, Reader
from xalen_batch.pipeline.split import Split


class Gathered:
    """Good lines on their way into a split."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.split = Split()
        self._marker = Marker()
        # They read each pair on its own, and have no prefix cache.
        self._rerankers = {model.id for model in models.values() if model.is_reranker}

    def add(self, line: GoodLine) -> None:
        self.split.add(line.model, line.span, () if line.model in self._rerankers else self._marker.marks(line.prompt))


class Place(NamedTuple):
    """Where a piece is: the file's key, and where in it the piece begins and ends, both between two lines."""

    key: str
    begin: int
    end: int


class Piece(NamedTuple):
    """Good lines, read as if the file began with them. `lines`: with the blank ones."""

    split: Split
    custom_ids: list[str]
    lines: int


class Crash(NamedTuple):
    """A bug was met, and this is what `log.cause` tells of it. The worker reads the file by itself."""

    cause: dict[str, str]


def serve(connection: Connection, environment: Mapping[str, str], endpoint: str, models: Mapping[str, Model]) -> None:
    """Read each place that comes, and send what came of it, until the worker is gone or has enough."""
    # The settings of the worker, wherever the fork server is from.
    os.environ.clear()
    os.environ.update(environment)
    # Ctrl-C in a terminal is for the worker, which lets this end what it has begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Good lines leave no cycles, and a look for some would copy all memory that it shares with other processes.
    gc.disable()
    with suppress(EOFError, OSError):
        while True:
            place = connection.recv()
            try:
                came: Piece | Crash | None = read_piece(place, endpoint, models)
            except Exception as error:
                # Told of without the words of a line, as the worker does; that it has to be imported is no matter here.
                from xalen_batch import log

                came = Crash(log.cause(error))
            connection.send(came)


def read_piece(place: Place, endpoint: str, models: Mapping[str, Model]) -> Piece | None:
    """None: there is something here that whoever reads the whole file has to look at, or it cannot be read."""
    reader, gathered = Reader(endpoint, models), Gathered(models)
    try:
        for line in reader.read(storage.chunks(*place), start=place.begin):
            if isinstance(line, Fault):
                return None
            gathered.add(line)
    except storage.AWAY:
        return None
    return Piece(gathered.split, list(reader.seen), reader.last_line)

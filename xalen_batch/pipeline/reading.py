"""Reading a batch's input file: what is wrong with it, or where its lines are and how they begin.

A large file is read in pieces, by processes of their own: on several cores, and while the lines of others run in this one. Of a
piece only good lines are told. Where one is not, the whole file is read once more from its beginning: what is wrong
with a line may lie in lines far before it, and is said in one place.
"""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from xalen_batch import log, storage
from xalen_batch.catalog import Model
from xalen_batch.config import MiB, settings
from xalen_batch.pipeline.faults import Fault, Faults
from xalen_batch.pipeline.prefix import Marker
from xalen_batch.pipeline.scan import LINES_PER_REQUEST, GoodLine, Reader, scan
from xalen_batch.pipeline.split import Split

logger = log.get(__name__)

# Reading so much takes some ten times as long as starting the processes.
LARGE_BYTES = 16 * MiB
# The same on every machine: where a piece begins decides a little about the running order.
PIECE_BYTES = 4 * MiB
# A line mostly ends in so many bytes.
LOOK_BYTES = 16 * 1024
LINES_PER_LOOK = 64
SECONDS_PER_LOOK = 0.5


@dataclass
class Reading:
    """What reading a file came to. With a fault, what else there is is not all of it."""

    split: Split = field(default_factory=Split)
    faults: Faults = field(default_factory=Faults)


class _Gathered:
    """Good lines on their way into a split."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.split = Split()
        self._marker = Marker()
        # They read each pair on its own, and have no prefix cache.
        self._rerankers = {model.id for model in models.values() if model.is_reranker}

    def add(self, line: GoodLine) -> None:
        self.split.add(line.model, line.span, () if line.model in self._rerankers else self._marker.marks(line.prompt))


# A piece's file and where it begins and ends, the batch's endpoint, the models that there are.
_Place = tuple[str, int, int, str, Mapping[str, Model]]


class _Piece(NamedTuple):
    """Good lines, read as if the file began with them. `lines`: with the blank ones."""

    split: Split
    custom_ids: list[str]
    lines: int


def read(key: str, *, endpoint: str, models: Mapping[str, Model], meanwhile: Callable[[], None]) -> Reading:
    """Read a whole file. `meanwhile` is called now and then; what it raises ends the work.

    `FileNotFoundError` if the file is gone; `BrokenProcessPool` if a process was lost that read it.
    """
    split = None
    if settings().validation_processes and storage.size(key) > LARGE_BYTES:
        split = _in_pieces(key, endpoint, models, meanwhile)
    return Reading(split) if split else _whole(key, endpoint, models, meanwhile)


def _whole(key: str, endpoint: str, models: Mapping[str, Model], meanwhile: Callable[[], None]) -> Reading:
    gathered, faults = _Gathered(models), Faults()
    for number, line in enumerate(scan(storage.chunks(key), endpoint=endpoint, models=models)):
        # A line takes microseconds.
        if number % LINES_PER_LOOK == 0:
            meanwhile()
        if isinstance(line, Fault):
            faults.add(line)
        else:
            gathered.add(line)
    return Reading(gathered.split, faults)


def _in_pieces(key: str, endpoint: str, models: Mapping[str, Model], meanwhile: Callable[[], None]) -> Split | None:
    """None: a line is at fault, or there are too many or none, or no process can be had."""
    split, custom_ids, lines = Split(), set[str](), 0
    most = settings().max_batch_lines
    with _submitted([(key, begin, end, endpoint, models) for begin, end in _cuts(key)]) as pieces:
        for future in pieces:
            while not wait([future], SECONDS_PER_LOOK).done:
                meanwhile()
            if (piece := future.result()) is None:
                return None
            split.extend(piece.split, lines_before=lines)
            custom_ids.update(piece.custom_ids)
            lines += piece.lines
            if not 0 < len(custom_ids) == split.lines <= most or lines >= most * LINES_PER_REQUEST:
                return None
    return split if pieces else None


def _cuts(key: str) -> Iterator[tuple[int, int]]:
    """Where the pieces of a file begin and end: between two lines."""
    begin, size = 0, storage.size(key)
    while begin < size:
        end = _line_end(key, begin + PIECE_BYTES - 1, size)
        yield begin, end
        begin = end


def _line_end(key: str, place: int, size: int) -> int:
    """Where the next line begins, behind the one that has the byte at `place`."""
    while place < size:
        (near,) = storage.ranges(key, [place], [min(LOOK_BYTES, size - place)])
        if (end := near.find(b"\n")) >= 0:
            return place + end + 1
        place += len(near)
    return size


@contextmanager
def _submitted(pieces: Sequence[_Place]) -> Iterator[Sequence[Future[_Piece | None]]]:
    """The pieces as they are being read; none where the machine does not let us have processes. On leaving, what is left is not read."""
    readers = None
    try:
        try:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            number = min(settings().validation_processes, len(pieces))
            readers = ProcessPoolExecutor(number, context, initializer=_begin, initargs=(dict(os.environ),))
            futures = [readers.submit(_read_piece, *piece) for piece in pieces]
        except (OSError, NotImplementedError) as error:
            # There may be no place for a socket or a semaphore, such as a writable /tmp or /dev/shm.
            logger.warning("validation.no_processes", **log.cause(error))
            futures = []
        yield futures
    finally:
        if readers:
            readers.shutdown(wait=False, cancel_futures=True)


def _begin(environment: Mapping[str, str]) -> None:
    """Of a process that reads: the settings of its worker, and its end."""
    os.environ.clear()
    os.environ.update(environment)
    # Ctrl-C in a terminal is for the worker, which lets this end what it has begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_worker, daemon=True).start()
    # Good lines leave no cycles, and a look for some would copy all memory that it shares with other processes.
    gc.disable()


def _end_with_worker() -> None:
    """However the worker dies: nobody else would tell a process that waits for pieces."""
    if worker := multiprocessing.parent_process():
        worker.join()
        os._exit(1)


def _read_piece(key: str, begin: int, end: int, endpoint: str, models: Mapping[str, Model]) -> _Piece | None:
    """None: there is something here that whoever reads the whole file has to look at, or it cannot be read."""
    reader, gathered = Reader(endpoint, models), _Gathered(models)
    try:
        for line in reader.read(storage.chunks(key, begin, end), start=begin):
            if isinstance(line, Fault):
                return None
            gathered.add(line)
    except storage.AWAY:
        return None
    return _Piece(gathered.split, list(reader.seen), reader.last_line)

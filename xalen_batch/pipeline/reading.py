"""Reading a batch's input file: what is wrong with it, or where its lines are and how they begin.

A large file is read in pieces, by processes of their own: on several cores, and while the lines of others run in this one. Of a
piece only good lines are told. Where one is not, the whole file is read once more from its beginning: what is wrong
with a line may lie in lines far before it, and is said in one place.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

from xalen_batch import log, storage
from xalen_batch.catalog import Model
from xalen_batch.config import MiB, settings
from xalen_batch.pipeline import pieces
from xalen_batch.pipeline.faults import Fault, Faults
from xalen_batch.pipeline.pieces import Gathered, Piece
from xalen_batch.pipeline.scan import LINES_PER_REQUEST, scan
from xalen_batch.pipeline.split import Split

logger = log.get(__name__)

# Reading so much takes some ten times as long as starting the processes.
LARGE_BYTES = 16 * MiB
# The same on every machine: where a piece begins decides a little about the running order.
PIECE_BYTES = 8 * MiB
# A line mostly ends in so many bytes.
LOOK_BYTES = 16 * 1024
LINES_PER_LOOK = 64
SECONDS_PER_LOOK = 0.5


# What `pieces.read` is told: the file, where in it, the batch's endpoint, the models that there are.
_Place = tuple[str, int, int, str, Mapping[str, Model]]


@dataclass
class Reading:
    """What reading a file came to. With a fault, what else there is is not all of it."""

    split: Split = field(default_factory=Split)
    faults: Faults = field(default_factory=Faults)


def read(key: str, *, endpoint: str, models: Mapping[str, Model], meanwhile: Callable[[], None]) -> Reading:
    """Read a whole file. `meanwhile` is called now and then; what it raises ends the work.

    `FileNotFoundError` if the file is gone; `BrokenProcessPool` if a process was lost that read it.
    """
    split = None
    if settings().validation_processes and storage.size(key) > LARGE_BYTES:
        split = _in_pieces(key, endpoint, models, meanwhile)
    return Reading(split) if split else _whole(key, endpoint, models, meanwhile)


def _whole(key: str, endpoint: str, models: Mapping[str, Model], meanwhile: Callable[[], None]) -> Reading:
    gathered, faults = Gathered(models), Faults()
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
    places = [(key, begin, end, endpoint, models) for begin, end in _cuts(key)]
    with _submitted(places) as futures:
        for piece in _pieces(places, futures, meanwhile):
            if piece is None:
                return None
            split.extend(piece.split, lines_before=lines)
            custom_ids.update(piece.custom_ids)
            lines += piece.lines
            if not 0 < len(custom_ids) == split.lines <= most or lines >= most * LINES_PER_REQUEST:
                return None
    return split if futures else None


def _pieces(places: Sequence[_Place], futures: Sequence[Future[Piece | None]], meanwhile: Callable[[], None]) -> Iterator[Piece | None]:
    """Each piece, in order. While the processes start, until the first one is back, this one reads too, from the end."""
    own: list[Piece | None] = []
    while futures and not futures[0].done() and futures[-1 - len(own)].cancel():
        own.append(pieces.read(*places[-1 - len(own)]))
        meanwhile()
    for future in futures[: len(futures) - len(own)]:
        while not wait([future], SECONDS_PER_LOOK).done:
            meanwhile()
        yield future.result()
    yield from reversed(own)


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
def _submitted(places: Sequence[_Place]) -> Iterator[Sequence[Future[Piece | None]]]:
    """The pieces as they are being read; none where the machine does not let us have processes. On leaving, what is left is not read."""
    readers = None
    try:
        try:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([pieces.__name__])
            number = min(settings().validation_processes, len(places))
            readers = ProcessPoolExecutor(number, context, initializer=pieces.begin, initargs=(dict(os.environ),))
            futures = [readers.submit(pieces.read, *place) for place in places]
        except (OSError, NotImplementedError) as error:
            # There may be no place for a socket or a semaphore, such as a writable /tmp or /dev/shm.
            logger.warning("validation.no_processes", **log.cause(error))
            futures = []
        yield futures
    finally:
        if readers:
            readers.shutdown(wait=False, cancel_futures=True)

"""Estimates a file in other processes, and a large one on several cores."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from pathlib import Path

from xalen_batch import storage
from xalen_batch.billing.terms import Terms
from xalen_batch.catalog import Model
from xalen_batch.config import Settings, settings
from xalen_batch.validation import apart, file_type, pieces, source
from xalen_batch.validation.errors import DUPLICATE, OF_FILE, Fault
from xalen_batch.validation.estimate import Estimate, estimate
from xalen_batch.validation.lines import LineReader
from xalen_batch.validation.pieces import ByteRange, Piece
from xalen_batch.validation.pool import ReaderPool
from xalen_batch.validation.read import LARGE_BYTES, byte_ranges, in_pieces
from xalen_batch.validation.source import Source

Readers = ReaderPool[ByteRange, Piece[Estimate] | None]
# Called with the bytes that are read, and those of the file.
Moved = Callable[[int, int], None]
# Shows the progress while its context lasts.
Progress = Callable[[], AbstractContextManager[Moved]]

# Bytes among which the end of the first line is searched.
FIRST_BYTES = 64 * 1024

_in_pieces = threading.Lock()


@contextmanager
def silent() -> Iterator[Moved]:
    """Show no progress."""
    yield lambda _done, _size: None


def estimate_file(
    key: str,
    *,
    endpoint: str | None,
    models: Mapping[str, Model],
    terms: Terms,
    discount_rate: Decimal,
) -> Estimate:
    """`estimate` of a file in storage, for a request of the API.

    Raises storage.UNAVAILABLE if storage fails, and Unavailable if the work takes too long.
    """
    work = Estimating(endpoint, models, terms, discount_rate)
    size, processes = storage.size(key), settings().validation_processes
    # One estimate at a time uses several cores; those beside it have one process each.
    if processes > 1 and size > LARGE_BYTES and _in_pieces.acquire(blocking=False):
        pool = partial(ReaderPool, niceness=apart.NICENESS, start_timeout=apart.START_TIMEOUT)
        try:
            found = work.in_pieces(key, processes, pool, silent)
        finally:
            _in_pieces.release()
        if found is not None:
            return found
    return apart.run(partial(work.whole, key), size=size)


def estimate_local(
    path: Path,
    *,
    endpoint: str | None,
    models: Mapping[str, Model],
    terms: Terms,
    discount_rate: Decimal,
    limits: Settings,
    progress: Progress,
) -> Estimate:
    """`estimate` of a file on this machine, for the command line.

    Call it while the process has one thread: it may fork.
    """
    work = Estimating(endpoint, models, terms, discount_rate, limits)
    processes = settings().validation_processes
    if processes > 1 and source.size(path) > LARGE_BYTES:
        # A fork starts in milliseconds; a fork server takes half a second.
        pool = partial(ReaderPool, method="fork" if sys.platform == "linux" else "forkserver")
        found = work.in_pieces(path, processes, pool, progress)
        if found is not None:
            return found
    return work.whole(path, progress)


@dataclass(frozen=True, slots=True)
class Estimating:
    """The work of an estimate, on a piece of a file or on all of it. It can be pickled.

    `limits` None: those of the settings. `url`: the endpoint that each line has to name, if it is
    known before a piece is read. Only then do faults mean the same in a piece as in the whole file.
    """

    endpoint: str | None
    models: Mapping[str, Model]
    terms: Terms
    discount_rate: Decimal
    limits: Settings | None = None
    url: str | None = None

    def __call__(self, byte_range: ByteRange) -> Piece[Estimate] | None:
        found = Estimate(self.endpoint, self.discount_rate)

        def keep(fault: Fault) -> bool:
            found.faults.add(fault)
            # These depend on lines before the piece.
            return self.url is not None and fault.code not in (DUPLICATE, *OF_FILE)

        add = partial(found.add, models=self.models, terms=self.terms)
        reader = LineReader(self.url, self.models, self.limits)
        return pieces.read_lines(byte_range, reader, add, found, keep)

    def in_pieces(
        self,
        file: Source,
        processes: int,
        pool: Callable[[int, "Estimating"], Readers],
        progress: Progress,
    ) -> Estimate | None:
        """The estimate of a file, read by several processes.

        None if it has faults that only a reading of the whole file can report.
        """
        found, ranges = Estimate(self.endpoint, self.discount_rate), list(byte_ranges(file))
        head = b"".join(source.chunks(file, 0, min(file_type.LONGEST, source.size(file))))
        if not ranges or file_type.refusal(head):
            return None
        work = replace(self, url=self._first_url(file, ranges[0].begin))
        ends = iter([byte_range.end for byte_range in ranges])

        def extend(content: Estimate, lines_before: int) -> None:
            found.extend(content, lines_before)
            moved(next(ends), ranges[-1].end)

        # The progress may start a thread, so it begins after the processes.
        with pool(min(processes, len(ranges)), work) as readers, progress() as moved:
            if not in_pieces(ranges, work, readers, extend, limits=self.limits):
                return None
        found.end()
        return found

    def _first_url(self, file: Source, begin: int) -> str | None:
        """The endpoint that was asked for, or else that of the first line, if it names one.

        None too if that line does not end soon: a thread of the API must not parse a long one.
        """
        if self.endpoint is not None:
            return self.endpoint
        end = min(begin + FIRST_BYTES, source.size(file))
        near = b"".join(source.chunks(file, begin, end))
        reader = LineReader(None, self.models, self.limits)
        next(reader.read([near[: near.rfind(b"\n") + 1]], start=begin), None)
        return reader.endpoint

    def whole(self, file: Source, progress: Progress = silent) -> Estimate:
        with progress() as moved:
            return estimate(
                _noted(file, moved),
                endpoint=self.endpoint,
                models=self.models,
                terms=self.terms,
                discount_rate=self.discount_rate,
                limits=self.limits,
            )


def _noted(file: Source, moved: Moved) -> Iterator[bytes]:
    """The chunks of a file, each counted after it is read."""
    size, done = source.size(file), 0
    for chunk in source.chunks(file):
        yield chunk
        done += len(chunk)
        moved(done, size)

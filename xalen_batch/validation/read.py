"""Reads a batch's input file: into its faults, or into a split of its lines.

A large file is read in pieces by other processes: on several cores, while this process runs lines
of other batches. A piece is only accepted if all its lines are good. Otherwise this process reads
the whole file from its beginning, because a fault may depend on a line far before it
(`duplicate_custom_id`), and faults are worded in one module.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Generic, TypeVar

from xalen_batch import storage
from xalen_batch.catalog import Model
from xalen_batch.config import MiB, Settings, settings
from xalen_batch.validation import source
from xalen_batch.validation.errors import Fault, Faults
from xalen_batch.validation.file_type import UTF8_BOM
from xalen_batch.validation.lines import LINES_PER_REQUEST, scan
from xalen_batch.validation.pieces import ByteRange, Piece, SplitBuilder, Splitting
from xalen_batch.validation.pool import ReaderPool
from xalen_batch.validation.source import Source
from xalen_batch.validation.split import Split

T = TypeVar("T")

# From this size on a file is read in pieces: reading it takes ten times as long as starting the
# processes.
LARGE_BYTES = 16 * MiB
# Not a setting: the boundaries of the pieces have a small influence on the running order.
PIECE_BYTES = 8 * MiB
# A line end is searched in steps of this size; most lines are shorter.
LOOK_BYTES = 16 * 1024
LINES_PER_LOOK = 64
# Seconds until any piece is done; one takes about 0.1 s. After this time the worker reads the file
# itself. If that hangs too, its lease runs out.
PIECE_TIMEOUT = 30.0


@dataclass
class Reading:
    """The result of reading a file. If it has `faults`, the split may be incomplete.

    `skipped`: the faults of lines that are left out, each with a custom id that is unique in the
    file.
    """

    split: Split = field(default_factory=Split)
    faults: Faults = field(default_factory=Faults)
    skipped: Sequence[Fault] = ()


def read(
    key: str,
    *,
    endpoint: str,
    models: Mapping[str, Model],
    skips: bool = False,
    meanwhile: Callable[[], None],
) -> Reading:
    """Read a whole file.

    `skips`: leave invalid lines out, unless the file itself has a fault or no line is good.
    `meanwhile` is called after every few lines or pieces; an exception from it ends the reading.
    Raises FileNotFoundError if the file is gone.
    """
    processes = settings().validation_processes
    if processes and storage.size(key) > LARGE_BYTES:
        split, ranges, work = Split(), list(byte_ranges(key)), Splitting(endpoint, models)
        with ReaderPool(min(processes, len(ranges)), work) as readers:
            if in_pieces(ranges, work, readers, split.extend, meanwhile):
                return Reading(split)
    return _whole(key, endpoint, models, meanwhile, skips=skips)


def _whole(
    key: str,
    endpoint: str,
    models: Mapping[str, Model],
    meanwhile: Callable[[], None],
    *,
    skips: bool = False,
) -> Reading:
    builder, faults = SplitBuilder(models), Faults()
    skipped: list[Fault] = []
    custom_ids: set[str] = set()
    for number, line in enumerate(scan(storage.chunks(key), endpoint=endpoint, models=models)):
        # Not after each line, which takes microseconds.
        if number % LINES_PER_LOOK == 0:
            meanwhile()
        if line.custom_id is not None:
            custom_ids.add(line.custom_id)
        if not isinstance(line, Fault):
            builder.add(line)
        elif skips and line.is_of_line:
            skipped.append(line)
        else:
            faults.add(line)
    if not builder.split.lines:
        for fault in skipped:
            faults.add(fault)
    return Reading(builder.split, faults, [_named(fault, custom_ids) for fault in skipped])


def _named(fault: Fault, taken: set[str]) -> Fault:
    """The fault with a custom id: its own, or else one made of the line number.

    A new id is unique in `taken`, and is added to it.
    """
    if fault.custom_id is not None:
        return fault
    name = base = f"line-{fault.line}"
    suffixes = count(2)
    while name in taken:
        name = f"{base}-{next(suffixes)}"
    taken.add(name)
    return replace(fault, custom_id=name)


def in_pieces(
    ranges: Sequence[ByteRange],
    work: Callable[[ByteRange], Piece[T] | None],
    readers: ReaderPool[ByteRange, Piece[T] | None],
    extend: Callable[[T, int], None],
    meanwhile: Callable[[], None] = lambda: None,
    *,
    limits: Settings | None = None,
) -> bool:
    """Read all pieces, and call `extend(content, lines_before)` for each, in file order.

    True if the file as a whole is good. False as soon as a piece is invalid or late; `extend` then
    was not called for all. `meanwhile`: as in `read`. `limits` None: those of the settings.
    """
    todo, joined = deque(ranges), _Joined(ranges, extend, limits or settings())
    while not joined.is_whole:
        readers.give(todo)
        if readers.are_busy:
            found = readers.results(todo, PIECE_TIMEOUT)
        else:
            # The processes have not started yet, or are lost: read a piece here, from the end.
            byte_range = todo.pop()
            found = {byte_range: work(byte_range)}
        if found is None or not joined.add(found):
            return False
        meanwhile()
    return joined.requests > 0


class _Joined(Generic[T]):
    """Puts pieces, which arrive in any order, into file order, and checks the file as a whole."""

    def __init__(
        self, ranges: Sequence[ByteRange], extend: Callable[[T, int], None], limits: Settings
    ) -> None:
        self._extend = extend
        self._left = deque(ranges)
        self._found: dict[ByteRange, Piece[T]] = {}
        self._custom_ids: set[str] = set()
        self._endpoints: set[str] = set()
        self.requests = self._inputs = self._ids = self._lines = 0
        self._most, self._most_inputs = limits.max_batch_lines, limits.max_batch_inputs

    @property
    def is_whole(self) -> bool:
        return not self._left

    def add(self, found: Mapping[ByteRange, Piece[T] | None]) -> bool:
        """False if the file as a whole is invalid."""
        for byte_range, piece in found.items():
            if piece is None:
                return False
            self._found[byte_range] = piece
        while self._left and self._left[0] in self._found:
            self._append(self._found.pop(self._left.popleft()))
            if not self._is_good():
                return False
        return True

    def _append(self, piece: Piece[T]) -> None:
        self._extend(piece.content, self._lines)
        self._custom_ids.update(piece.custom_ids)
        self._ids += len(piece.custom_ids)
        self.requests += piece.requests
        self._inputs += piece.inputs
        self._lines += piece.lines
        if piece.endpoint:
            self._endpoints.add(piece.endpoint)

    def _is_good(self) -> bool:
        """Whether the ids are unique, one endpoint is named, and the file is not too long."""
        is_small = self.requests <= self._most and self._lines < self._most * LINES_PER_REQUEST
        if self._most_inputs is not None and self._inputs > self._most_inputs:
            is_small = False
        return is_small and len(self._custom_ids) == self._ids and len(self._endpoints) <= 1


def byte_ranges(file: Source) -> Iterator[ByteRange]:
    """The pieces of a file, each of about PIECE_BYTES: whole lines, and together all of them."""
    size = source.size(file)
    head = b"".join(source.chunks(file, 0, min(size, len(UTF8_BOM))))
    begin = len(UTF8_BOM) if head == UTF8_BOM else 0
    while begin < size:
        end = _line_end(file, begin + PIECE_BYTES - 1, size)
        yield ByteRange(file, begin, end)
        begin = end


def _line_end(file: Source, offset: int, size: int) -> int:
    """The offset behind the line that contains the byte at `offset`."""
    while offset < size:
        near = b"".join(source.chunks(file, offset, min(offset + LOOK_BYTES, size)))
        end = near.find(b"\n")
        if end >= 0:
            return offset + end + 1
        offset += len(near)
    return size

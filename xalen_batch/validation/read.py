"""Reading a batch's input file: its faults, or where its lines are and how they begin.

A large file is read in pieces, by processes of their own: on several cores, and while the lines of
others run in this one. A piece yields only good lines. Where one is not, the whole file is read
once more from its beginning: a line's fault may depend on lines far before it, and is worded in one
place.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Generic, TypeVar

from xalen_batch import storage
from xalen_batch.catalog import Model
from xalen_batch.config import MiB, settings
from xalen_batch.validation.errors import Fault, Faults
from xalen_batch.validation.lines import LINES_PER_REQUEST, UTF8_BOM, scan
from xalen_batch.validation.pieces import Gathered, Piece, Place, Splitting
from xalen_batch.validation.pool import Readers
from xalen_batch.validation.split import Split

T = TypeVar("T")

# Reading so much takes some ten times as long as starting the processes.
LARGE_BYTES = 16 * MiB
# The same on every machine: where a piece begins decides a little about the running order.
PIECE_BYTES = 8 * MiB
# A line mostly ends in so many bytes.
LOOK_BYTES = 16 * 1024
LINES_PER_LOOK = 64
# Seconds for a piece, which takes a tenth of one. Beyond that the worker reads by itself: its lease
# runs out if that hangs as well.
PATIENCE = 30.0


@dataclass
class Reading:
    """What reading a file came to. With a fault, what else there is is not all of it.

    `skipped`: the faults of lines that are left out, each with a custom id that no other line of
    the file has.
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
    """Read a whole file. `meanwhile` is called whenever some of it has been read; what it raises
    ends the work.

    `skips`: invalid lines are left out, unless the file itself has a fault or no line is good.
    FileNotFoundError if the file is gone.
    """
    processes = settings().validation_processes
    if processes and storage.size(key) > LARGE_BYTES:
        split, places = Split(), list(places_of(key))
        with Readers(min(processes, len(places)), Splitting(endpoint, models)) as readers:
            if in_pieces(places, Splitting(endpoint, models), readers, split.extend, meanwhile):
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
    gathered, faults, skipped, custom_ids = Gathered(models), Faults(), list[Fault](), set[str]()
    for number, line in enumerate(scan(storage.chunks(key), endpoint=endpoint, models=models)):
        # A line takes microseconds.
        if number % LINES_PER_LOOK == 0:
            meanwhile()
        if line.custom_id is not None:
            custom_ids.add(line.custom_id)
        if not isinstance(line, Fault):
            gathered.add(line)
        elif skips and line.is_of_line:
            skipped.append(line)
        else:
            faults.add(line)
    if not gathered.split.lines:
        for fault in skipped:
            faults.add(fault)
    return Reading(gathered.split, faults, [_named(fault, custom_ids) for fault in skipped])


def _named(fault: Fault, taken: set[str]) -> Fault:
    """The fault with its line's custom id, else with one that is made of the line's number."""
    if fault.custom_id is not None:
        return fault
    name = f"line-{fault.line}"
    made_up = next(
        found
        for found in chain([name], (f"{name}-{number}" for number in count(2)))
        if found not in taken
    )
    taken.add(made_up)
    return replace(fault, custom_id=made_up)


def in_pieces(
    places: Sequence[Place],
    work: Callable[[Place], Piece[T] | None],
    readers: Readers[Place, Piece[T] | None],
    extend: Callable[[T, int], None],
    meanwhile: Callable[[], None] = lambda: None,
) -> bool:
    """Call `extend` with what was made of each piece and the number of lines before it, in file
    order.

    False, with some of them missing, unless the file as a whole is good and every piece is read in
    time. `meanwhile`: as of `read`.
    """
    todo, joined = deque(places), _Joined(places, extend)
    while not joined.is_whole:
        readers.give(todo)
        if readers.are_busy:
            found = readers.back(todo, PATIENCE)
        else:
            # They have not started yet, or are lost.
            place = todo.pop()
            found = {place: work(place)}
        if found is None or not joined.add(found):
            return False
        meanwhile()
    return joined.requests > 0


class _Joined(Generic[T]):
    """Pieces that come in any order, joined in the file's."""

    def __init__(self, places: Sequence[Place], extend: Callable[[T, int], None]) -> None:
        self._extend = extend
        self._left = deque(places)
        self._found: dict[Place, Piece[T]] = {}
        self._custom_ids = set[str]()
        self._endpoints = set[str]()
        self.requests = self._lines = 0
        self._most = settings().max_batch_lines

    @property
    def is_whole(self) -> bool:
        return not self._left

    def add(self, found: Mapping[Place, Piece[T] | None]) -> bool:
        """False: the file as a whole is not good."""
        for place, piece in found.items():
            if piece is None:
                return False
            self._found[place] = piece
        while self._left and (piece := self._found.pop(self._left[0], None)):
            self._left.popleft()
            self._extend(piece.content, self._lines)
            self._custom_ids.update(piece.custom_ids)
            self.requests += len(piece.custom_ids)
            self._lines += piece.lines
            if piece.endpoint:
                self._endpoints.add(piece.endpoint)
            if not self._is_good():
                return False
        return True

    def _is_good(self) -> bool:
        """Whether no id is there twice, all ask for one endpoint, and there are not too many lines."""
        is_small = self.requests <= self._most and self._lines < self._most * LINES_PER_REQUEST
        return is_small and len(self._custom_ids) == self.requests and len(self._endpoints) <= 1


def places_of(key: str) -> Iterator[Place]:
    """The pieces of a file: whole lines, and all of them."""
    size = storage.size(key)
    (head,) = storage.ranges(key, [0], [min(size, len(UTF8_BOM))])
    begin = len(UTF8_BOM) if head == UTF8_BOM else 0
    while begin < size:
        end = _line_end(key, begin + PIECE_BYTES - 1, size)
        yield Place(key, begin, end)
        begin = end


def _line_end(key: str, place: int, size: int) -> int:
    """Where the next line begins, behind the one that has the byte at `place`."""
    while place < size:
        (near,) = storage.ranges(key, [place], [min(LOOK_BYTES, size - place)])
        if (end := near.find(b"\n")) >= 0:
            return place + end + 1
        place += len(near)
    return size

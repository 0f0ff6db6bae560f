"""Split: cut a batch's lines into tasks, each a slice of lines of one model that one worker runs.

The lines have a running order (`prefix`): tasks follow it, and so do the lines in a task. What a
reader gets is in file order all the same, since results are read by their line numbers.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil

from xalen_batch import jsonl
from xalen_batch.backends import tokens
from xalen_batch.config import settings
from xalen_batch.jsonl import Span
from xalen_batch.validation.prefix_order import Starts

# A small batch is cut in this many tasks, so that it spreads over the workers; but a claim and its
# first transaction cost as much as some requests, so a task has a few lines at least.
SPREAD = 8
FEWEST_LINES = 25


@dataclass(frozen=True, slots=True)
class Slice:
    """The lines of a task to be, in running order, as `jsonl.pack` makes them.

    `place`: how many of the batch come before the first.
    """

    model: str
    place: int
    index: bytes

    @property
    def lines(self) -> int:
        return len(self.index) // jsonl.SPAN_BYTES

    @property
    def spans(self) -> list[Span]:
        return list(jsonl.unpack(self.index))


@dataclass
class _Lines:
    """The lines of one model, in file order: where each is, as 16 bytes, and how it begins."""

    packed: bytearray = field(default_factory=bytearray)
    starts: Starts = field(default_factory=Starts)

    def extend(self, others: "_Lines", lines_before: int) -> None:
        self.packed += jsonl.renumber(others.packed, lines_before)
        self.starts.extend(others.starts)

    def ordered(self) -> bytes:
        """The same index, in running order."""
        packed, size, order = bytes(self.packed), jsonl.SPAN_BYTES, self.starts.running_order()
        # Mostly no line begins like another, or all do.
        if order == list(range(len(order))):
            return packed
        return b"".join(packed[line * size : (line + 1) * size] for line in order)


@dataclass
class Split:
    """Lines by model, held as tens of bytes each until all are known: their number decides the size
    of a task.
    """

    _by_model: dict[str, _Lines] = field(default_factory=dict)
    lines: int = 0
    # What the lines count as while they wait or run (`tokens.enqueued`).
    tokens: int = 0

    def add(self, model: str, span: Span, marks: Sequence[int] = ()) -> None:
        """`marks`: what makes its place in the running order; without any the line runs where it is
        in the file.
        """
        lines = self._of(model)
        lines.packed += jsonl.entry(*span)
        lines.starts.add(marks)
        self.lines += 1
        self.tokens += tokens.enqueued(span.length)

    def extend(self, others: "Split", lines_before: int) -> None:
        """Add what comes next in the file, `lines_before` lines behind its beginning, where it was
        read as if it began there.
        """
        for model, lines in others._by_model.items():
            self._of(model).extend(lines, lines_before)
        self.lines += others.lines
        self.tokens += others.tokens

    @property
    def models(self) -> list[str]:
        """The models named so far, in the order of their first lines."""
        return list(self._by_model)

    def slices(self) -> Iterator[Slice]:
        """Every line once, in running order within its model; models take turns, so that neither
        waits for the other.
        """
        place = 0
        waiting = [(model, _cut(lines.ordered())) for model, lines in self._by_model.items()]
        while waiting:
            still = []
            for model, cuts in waiting:
                if index := next(cuts, None):
                    slice_ = Slice(model, place, index)
                    yield slice_
                    place += slice_.lines
                    still.append((model, cuts))
            waiting = still

    def _of(self, model: str) -> _Lines:
        return self._by_model.get(model) or self._by_model.setdefault(model, _Lines())


def task_lines(lines: int) -> int:
    """Most lines in one task of a batch that has so many of a model."""
    return min(settings().task_lines, max(FEWEST_LINES, ceil(lines / SPREAD)))


def _cut(index: bytes) -> Iterator[bytes]:
    size, lengths = jsonl.SPAN_BYTES, list(jsonl.lengths(index))
    most_lines, most_bytes = task_lines(len(lengths)), settings().task_bytes
    begin = 0
    while begin < len(lengths):
        held = list(accumulate(lengths[begin : begin + most_lines]))
        end = begin + max(1, bisect_right(held, most_bytes))
        yield index[begin * size : end * size]
        begin = end

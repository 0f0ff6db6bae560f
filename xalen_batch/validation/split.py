"""Split: cut a batch's lines into tasks. A task has lines of one model, and one worker runs it.

Tasks, and the lines in a task, follow the running order (`prefix_order`). Results are still read in
file order, by their line numbers.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil

from xalen_batch import jsonl
from xalen_batch.config import settings
from xalen_batch.endpoints import tokens
from xalen_batch.jsonl import Span
from xalen_batch.validation.prefix_order import PrefixIndex

# A small batch has SPREAD tasks, so that several workers share it. But a claim with its first
# transaction costs as much as several requests, so a task has at least FEWEST_LINES.
SPREAD = 8
FEWEST_LINES = 25


@dataclass(frozen=True, slots=True)
class Slice:
    """The lines of one future task, in running order.

    `position`: that of the first line in the batch's running order, from 0. `index`: the lines'
    spans, as `jsonl.pack` encodes them.
    """

    model: str
    position: int
    index: bytes

    @property
    def lines(self) -> int:
        return len(self.index) // jsonl.SPAN_BYTES

    @property
    def spans(self) -> list[Span]:
        return list(jsonl.unpack(self.index))


@dataclass
class _ModelLines:
    """The lines of one model in file order: their spans, 16 bytes each, and their prefix hashes."""

    packed: bytearray = field(default_factory=bytearray)
    prefixes: PrefixIndex = field(default_factory=PrefixIndex)

    def extend(self, others: "_ModelLines", lines_before: int) -> None:
        self.packed += jsonl.renumber(others.packed, lines_before)
        self.prefixes.extend(others.prefixes)

    def ordered(self) -> bytes:
        """The spans in running order."""
        packed, size, order = bytes(self.packed), jsonl.SPAN_BYTES, self.prefixes.running_order()
        # In most files no line shares a prefix, or all share one: the order does not change.
        if order == list(range(len(order))):
            return packed
        return b"".join(packed[line * size : (line + 1) * size] for line in order)


@dataclass
class Split:
    """All lines of a batch by model, in tens of bytes each.

    They are held until the file is read, because their number decides the size of a task.
    """

    _by_model: dict[str, _ModelLines] = field(default_factory=dict)
    lines: int = 0
    # Enqueued tokens: the estimate that counts toward the account's limit (`tokens.enqueued`).
    tokens: int = 0

    def add(self, model: str, span: Span, hashes: Sequence[int] = ()) -> None:
        """Add the next line of the file.

        `hashes`: its prefix hashes; a line without any keeps its position in the file.
        """
        lines = self._of(model)
        lines.packed += jsonl.entry(*span)
        lines.prefixes.add(hashes)
        self.lines += 1
        self.tokens += tokens.enqueued(span.length)

    def extend(self, others: "Split", lines_before: int) -> None:
        """Append the split of the file's next piece, whose lines are numbered from 1.

        `lines_before`: the number of lines in the file before that piece.
        """
        for model, lines in others._by_model.items():
            self._of(model).extend(lines, lines_before)
        self.lines += others.lines
        self.tokens += others.tokens

    @property
    def models(self) -> list[str]:
        """The models of the lines, in the order of their first lines."""
        return list(self._by_model)

    def slices(self) -> Iterator[Slice]:
        """All lines in slices, in running order within each model.

        The models take turns, so that the lines of each begin early.
        """
        position = 0
        waiting = [(model, _cut(lines.ordered())) for model, lines in self._by_model.items()]
        while waiting:
            unfinished = []
            for model, cuts in waiting:
                index = next(cuts, None)
                if index is None:
                    continue
                slice_ = Slice(model, position, index)
                yield slice_
                position += slice_.lines
                unfinished.append((model, cuts))
            waiting = unfinished

    def _of(self, model: str) -> _ModelLines:
        return self._by_model.get(model) or self._by_model.setdefault(model, _ModelLines())


def task_lines(lines: int) -> int:
    """The most lines of one task of a model, for a batch with `lines` lines of that model."""
    return min(settings().task_lines, max(FEWEST_LINES, ceil(lines / SPREAD)))


def _cut(index: bytes) -> Iterator[bytes]:
    """Cut packed spans into tasks by the limits on a task's lines and bytes."""
    size, lengths = jsonl.SPAN_BYTES, list(jsonl.lengths(index))
    most_lines, most_bytes = task_lines(len(lengths)), settings().task_bytes
    begin = 0
    while begin < len(lengths):
        held = list(accumulate(lengths[begin : begin + most_lines]))
        end = begin + max(1, bisect_right(held, most_bytes))
        yield index[begin * size : end * size]
        begin = end

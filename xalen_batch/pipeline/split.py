"""Split: cut a batch's lines into tasks, each a slice of lines of one model that one worker runs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil
from uuid import UUID

from sqlalchemy import insert
from sqlalchemy.orm import Session

from xalen_batch import jsonl
from xalen_batch.config import settings
from xalen_batch.jsonl import Span
from xalen_batch.models import Task

# A small batch is cut in this many tasks, so that it spreads over the workers; but a claim and its
# first transaction cost as much as some requests, so a task has a few lines at least.
SPREAD = 8
FEWEST_LINES = 10

ROWS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Slice:
    """The lines of a task to be, in file order."""

    model: str
    spans: list[Span]


@dataclass
class Split:
    """Lines by model, held as 16 bytes each until all are known: their number decides the size of a task."""

    _packed: dict[str, bytearray] = field(default_factory=dict)
    lines: int = 0

    def add(self, model: str, span: Span) -> None:
        self._packed.setdefault(model, bytearray()).extend(jsonl.pack([span]))
        self.lines += 1

    @property
    def models(self) -> list[str]:
        """The models named so far, in the order of their first lines."""
        return list(self._packed)

    def slices(self) -> Iterator[Slice]:
        """Every line once, in file order within its model; models take turns, so that neither waits for the other."""
        waiting = [_cut(model, packed) for model, packed in self._packed.items()]
        while waiting:
            still = []
            for slices in waiting:
                if (slice := next(slices, None)) is not None:
                    yield slice
                    still.append(slices)
            waiting = still

    def insert(self, session: Session, batch_id: UUID) -> int:
        """Write the tasks of a batch; returns how many."""
        rows: list[dict[str, object]] = []
        seq = -1
        for seq, slice in enumerate(self.slices()):
            index = jsonl.pack(slice.spans)
            rows.append({"batch_id": batch_id, "seq": seq, "model": slice.model, "lines": len(slice.spans), "line_index": index})
            if len(rows) == ROWS_AT_ONCE:
                session.execute(insert(Task), rows)
                rows = []
        if rows:
            session.execute(insert(Task), rows)
        return seq + 1


def task_lines(lines: int) -> int:
    """Most lines in one task of a batch that has so many of a model."""
    return min(settings().task_lines, max(FEWEST_LINES, ceil(lines / SPREAD)))


def _cut(model: str, packed: bytearray) -> Iterator[Slice]:
    most_lines, most_bytes = task_lines(len(packed) // jsonl.SPAN_BYTES), settings().task_bytes
    spans: list[Span] = []
    size = 0
    for span in jsonl.unpack(packed):
        if spans and (len(spans) == most_lines or size + span.length > most_bytes):
            yield Slice(model, spans)
            spans, size = [], 0
        spans.append(span)
        size += span.length
    yield Slice(model, spans)

"""Merged results: every line of a batch once, each with its last result among its retries.

A batch and its retries each have their lines in the order of their input, in an output and an error
file. The lines are merged by their numbers, which their ids hold, so no more than a line and a
chunk of each file is in memory.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from sqlalchemy.orm import Session

from xalen_batch import files, ids
from xalen_batch.accounts.accounts import Owner
from xalen_batch.batches import batches, failed_lines, retries
from xalen_batch.config import MiB
from xalen_batch.models import Batch
from xalen_batch.models.files import FilePart
from xalen_batch.results import content, results
from xalen_batch.results.content import Rendered
from xalen_batch.states import BatchStatus

CHUNK_BYTES = 256 * 1024
# Bytes of a line before the digits of its number (`ids.line_id`).
_BEFORE_NUMBER = len('{"id":"') + len(ids.line_id(UUID(int=0), 0)) - len("000000")

# The number of a line, its bytes, and the part of the output that it is in.
Numbered = tuple[int, bytes, FilePart]


@dataclass(frozen=True, slots=True)
class Merged:
    """The merged results of a batch. `is_complete`: neither it nor a retry will have more lines."""

    content: Rendered
    is_complete: bool


@dataclass(frozen=True, slots=True)
class _Node:
    """A batch, its files, and its retries. Immutable; one thread at a time reads its lines."""

    batch: Batch
    parts: Sequence[tuple[FilePart, Callable[[], Iterator[bytes]]]]
    retries: "Sequence[_Node]"

    @property
    def is_complete(self) -> bool:
        is_over = BatchStatus(self.batch.status).is_terminal
        return is_over and all(retry.is_complete for retry in self.retries)

    @property
    def files(self) -> int:
        """The files that are read side by side, those of the retries too."""
        return len(self.parts) + sum(retry.files for retry in self.retries)

    def lines(self) -> Iterator[Numbered]:
        """The lines that have ended, ascending, with the results of the retries in their places."""
        own = heapq.merge(*(numbered(part, chunks()) for part, chunks in self.parts))
        if not self.retries:
            yield from own
            return
        # Of equal numbers, `heapq.merge` gives the one of the earlier iterator first.
        again = (self._retried(retry) for retry in self.retries)
        last = 0
        for found in heapq.merge(*again, own, key=_number):
            if found[0] != last:
                yield found
                last = found[0]

    def _retried(self, retry: "_Node") -> Iterator[Numbered]:
        """The lines of a retry, with their numbers in this batch's input.

        The n-th line of a retry is the n-th of the lines that it took.
        """
        taken = enumerate(failed_lines.numbers(self.batch, retry.batch.retry_codes or ()), start=1)
        for number, line, part in retry.lines():
            for position, original in taken:
                if position == number:
                    yield original, line, part
                    break


def of(session: Session, owner: Owner, public_id: str, only: FilePart | None = None) -> Merged:
    """The merged results of a batch of this owner, with those of its retries and of theirs.

    `only`: of the lines whose last result is in this part. Raises NotFound, also if the results of
    one of them were deleted or have expired.
    """
    batch = batches.get(session, owner, public_id)
    nodes: dict[UUID, list[_Node]] = {}
    # Youngest first: the retries of a batch are younger than the batch.
    for retry in reversed(retries.of(session, batch)):
        if retry.retry_of is not None and retry.status != BatchStatus.FAILED:
            node = _node(session, owner, retry, nodes.pop(retry.id, ()))
            nodes.setdefault(retry.retry_of, []).append(node)
    root = _node(session, owner, batch, nodes.get(batch.id, ()))
    return Merged(
        Rendered(partial(_chunks, root, only), None, max(root.files, 1)), root.is_complete
    )


def _node(session: Session, owner: Owner, batch: Batch, below: Sequence[_Node]) -> _Node:
    parts: list[tuple[FilePart, Callable[[], Iterator[bytes]]]] = []
    if not BatchStatus(batch.status).is_terminal:
        parts = [(part, partial(results.chunks, batch.id, part)) for part in FilePart]
    file_ids = {FilePart.OUTPUT: batch.output_file_id, FilePart.ERROR: batch.error_file_id}
    for part, file_id in file_ids.items():
        if file_id is not None:
            found = content.of(files.get(session, owner, ids.render("file", file_id)))
            if isinstance(found, Rendered):
                parts.append((part, found.chunks))
            else:
                parts.append((part, partial(found.chunks, 0, found.size)))
    return _Node(batch, parts, below)


def _chunks(node: _Node, only: FilePart | None) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for _, line, part in node.lines():
        if only not in (None, part):
            continue
        held.append(line)
        size += len(line)
        if size >= CHUNK_BYTES:
            yield from _pieces(b"".join(held))
            held, size = [], 0
    yield from _pieces(b"".join(held))


def _pieces(content: bytes) -> Iterator[bytes]:
    """The bytes in pieces of at most MiB: the last line of a chunk may be long."""
    for start in range(0, len(content), MiB):
        yield content[start : start + MiB]


def _number(line: Numbered) -> int:
    return line[0]


def numbered(part: FilePart, chunks: Iterator[bytes]) -> Iterator[Numbered]:
    """The lines of an output or error file, with their line ends, their numbers and their part."""
    held: list[bytes] = []
    for chunk in chunks:
        first, *more = chunk.split(b"\n")
        held.append(first)
        for piece in more:
            line = b"".join(held) if len(held) > 1 else held[0]
            yield number_of(line), line + b"\n", part
            held = [piece]


def number_of(line: bytes) -> int:
    """The number of a line of an output or error file, from the beginning of the line."""
    return int(line[_BEFORE_NUMBER : line.index(b'"', _BEFORE_NUMBER)], 16)

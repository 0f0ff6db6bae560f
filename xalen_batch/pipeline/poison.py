"""Blame: what follows for a task whose worker was lost. Pure, so that it can be tried on any
history of losses.

A worker may be lost for reasons of its own, so no line is blamed for a loss that it shared. A task
that has shared two is suspect, and from then on runs only where nothing else is in flight; lost
there, it is cut in ever smaller parts, down to a line alone. Only a loss of a worker that ran this
one line and nothing else counts against a line (docs/decisions/0017).
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

from xalen_batch.models.tasks import SUSPECT_LOSSES

T = TypeVar("T")

# Workers that a line takes down, alone with each, before it fails.
ALONE_LOSSES = 3
# In so many tasks a suspect is cut: more would run longer one after another, fewer would cost more
# workers.
PARTS = 8


class Verdict(StrEnum):
    AGAIN = "again"
    CUT = "cut"
    FAIL = "fail"


def verdict(losses: int, lines: int) -> Verdict:
    """For a task of so many lines that has come back with so many losses."""
    if lines == 1:
        return Verdict.FAIL if losses >= SUSPECT_LOSSES + ALONE_LOSSES else Verdict.AGAIN
    return Verdict.CUT if losses > SUSPECT_LOSSES else Verdict.AGAIN


def parts(lines: Sequence[T]) -> list[Sequence[T]]:
    """These lines in at most `PARTS` slices, as equal as can be."""
    count = min(PARTS, len(lines))
    return [lines[len(lines) * n // count : len(lines) * (n + 1) // count] for n in range(count)]

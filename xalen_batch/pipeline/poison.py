"""Poison detection: what follows when the lease of a task ends because its worker crashed.

A poison message is a line that crashes every worker that runs it. A worker may also crash for
reasons of its own, so a crash counts against a line only if the line was the only one in flight.
After SUSPECT_CRASHES crashes a task is suspect: from then on a worker runs it with nothing else in
flight. A suspect that crashes its worker is split into smaller tasks, down to single lines
(docs/decisions/0017).

The functions are pure, so tests can run them on any history of crashes.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

from xalen_batch.models.tasks import SUSPECT_CRASHES

T = TypeVar("T")

# Crashes of workers that ran this one line and nothing else, before the line fails.
ALONE_CRASHES = 3
# Tasks into which a suspect is split. More parts would run one after another for longer; fewer
# parts would crash more workers before the line is found.
PARTS = 8


class AfterCrash(StrEnum):
    """What happens to a task whose worker crashed."""

    RETRY = "retry"
    SPLIT = "split"
    FAIL = "fail"


def after_crash(crashes: int, lines: int) -> AfterCrash:
    """What happens to a task of this many lines, after this many crashes."""
    if lines == 1:
        is_poison = crashes >= SUSPECT_CRASHES + ALONE_CRASHES
        return AfterCrash.FAIL if is_poison else AfterCrash.RETRY
    return AfterCrash.SPLIT if crashes > SUSPECT_CRASHES else AfterCrash.RETRY


def parts(lines: Sequence[T]) -> list[Sequence[T]]:
    """The lines in at most PARTS slices of nearly equal length."""
    count = min(PARTS, len(lines))
    return [lines[len(lines) * n // count : len(lines) * (n + 1) // count] for n in range(count)]

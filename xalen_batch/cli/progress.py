"""Progress on stderr: bars on a terminal, otherwise a line from time to time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import TransferSpeedColumn as Speed

from xalen_batch.cli import batch_view, waits, windows
from xalen_batch.cli.batch_view import ENDED
from xalen_batch.cli.output import STDERR, figure, say

Counts = dict[str, int]
# Called with the number of bytes transferred, and the total if it is known.
Moved = Callable[[int, int | None], None]
LINE_EVERY = 10.0


@contextmanager
def transfer(label: str) -> Iterator[Moved]:
    """A progress bar of bytes."""
    columns = (
        TextColumn(label, markup=False),
        BarColumn(),
        DownloadColumn(),
        Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=STDERR, transient=True, disable=not STDERR.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def walk(noun: str) -> Iterator[Callable[[int, str], None]]:
    """The progress of a walk: called with the number of objects of a step, and the last one's id.

    A spinner on a terminal, otherwise a line every LINE_EVERY seconds.
    """
    done, said = 0, time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=STDERR, transient=True, disable=not STDERR.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def checked(count: int, last: str) -> None:
            nonlocal done, said
            done += count
            line = f"{figure(done)} {noun} checked, the last is {last}"
            bar.update(task, description=line)
            if not STDERR.is_terminal and time.monotonic() - said > LINE_EVERY:
                said = time.monotonic()
                say(line)

        yield checked


class View(Protocol):
    """Shows the progress of a batch."""

    def update(self, batch: dict[str, Any]) -> None: ...


@contextmanager
def batch() -> Iterator[View]:
    """A live bar for a batch, or plain lines if stderr is no terminal."""
    if not STDERR.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("eta", style="dim"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=STDERR) as bar:
        yield _Bar(bar)


class _Rate:
    """Lines per second since the first update with an ended line."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def per_second(self, done: int) -> float:
        now = time.monotonic()
        if self._start is None:
            self._start = (now, done)
        since, before = self._start
        return (done - before) / (now - since) if now - since > 0.1 else 0.0


class _Bar:
    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("submitted", total=None, detail="")
        self._rate = _Rate()

    def update(self, batch: dict[str, Any]) -> None:
        counts: Counts = batch["request_counts"]
        done, total = batch_view.ended_lines(counts), counts["total"]
        rate = self._rate.per_second(done) if total else 0.0
        detail = (
            f"{figure(done)}/{figure(total)} · {rate:,.0f}/s · {figure(counts['failed'])} failed"
            if total
            else ""
        )
        status = (
            batch["status"]
            if windows.waits_until(batch) is None and not waits.is_unusual(batch)
            else "waiting"
        )
        self._bar.update(
            self._task, description=status, total=total or None, completed=done, detail=detail
        )


class _Lines:
    def __init__(self) -> None:
        self._status = ""
        self._said_at = 0.0

    def update(self, batch: dict[str, Any]) -> None:
        if batch["status"] in ENDED:
            # Another line reports the outcome.
            return
        if batch["status"] == self._status and time.monotonic() - self._said_at < LINE_EVERY:
            return
        self._status, self._said_at = batch["status"], time.monotonic()
        counts: Counts = batch["request_counts"]
        done, total = batch_view.ended_lines(counts), counts["total"]
        say(
            f"{batch['id']} {self._status}"
            + (
                f" {figure(done)}/{figure(total)} lines, {figure(counts['failed'])} failed"
                if total
                else ""
            )
        )

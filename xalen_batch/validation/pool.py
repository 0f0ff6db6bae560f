"""Processes that read for another: on several cores, and without the interpreter's lock of the
process that asks.
"""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from typing import Generic, Self, TypeVar

from xalen_batch import log
from xalen_batch.validation import pieces
from xalen_batch.validation.pieces import Crash

logger = log.get(__name__)

A = TypeVar("A")
T = TypeVar("T")

AT_ONCE = 0.1
# What the fork server imports, so that its processes need not.
PRELOADED = [
    f"xalen_batch.{name}"
    for name in (
        "validation.pieces",
        "validation.estimate_file",
        "schedules.preflight_file",
        "schedules.collect_lines",
    )
]

# `multiprocessing` keeps its children in one set, and threads may start some at once.
_starting = threading.Lock()


def prepare() -> None:
    """Start the fork server, so that the first to ask need not wait half a second for it."""
    with suppress(OSError):
        _context()
        ensure_running()


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Readers(Generic[A, T]):
    """Up to `number` processes; each does `work` for one argument after the other. They start one
    by one, and end on leaving.

    A process may be lost at any time, or never start: the caller has to be ready to do the work
    itself. `patience`: seconds that entering waits for the first of them.
    """

    def __init__(
        self, number: int, work: Callable[[A], T], *, niceness: int = 0, patience: float = AT_ONCE
    ) -> None:
        self._number = number
        self._told = (niceness, work)
        self._patience = patience
        self._processes: dict[Connection, ForkServerProcess] = {}
        self._idle: deque[Connection] = deque()
        self._busy: dict[Connection, A] = {}
        self._is_over = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        start = threading.Thread(target=self._start, name="readers", daemon=True)
        start.start()
        # Mostly they are there at once. The fork server of a process's first large file takes half
        # a second to start.
        start.join(self._patience)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_over = True
            for connection in (*self._idle, *self._busy):
                self._end(connection)

    @property
    def are_busy(self) -> bool:
        return bool(self._busy)

    def give(self, todo: deque[A]) -> None:
        """Hand out arguments, from the front, to idle processes."""
        while todo and self._idle:
            connection = self._idle.popleft()
            try:
                connection.send(todo[0])
            except OSError:
                self._lost(connection)
            else:
                self._busy[connection] = todo.popleft()

    def back(self, todo: deque[A], timeout: float) -> dict[A, T | None] | None:
        """Results, as soon as there is one; None after `timeout` seconds. A result is None after a
        crash.

        The argument of a lost process is put back at the end of `todo`.
        """
        found: dict[A, T | None] = {}
        ready = wait(list(self._busy), timeout)
        for connection in ready:
            assert isinstance(connection, Connection)
            argument = self._busy.pop(connection)
            try:
                came = connection.recv()
            except (EOFError, OSError):
                todo.append(argument)
                self._lost(connection)
                continue
            if isinstance(came, Crash):
                logger.error("reading.crashed", **came.cause)
            found[argument] = None if isinstance(came, Crash) else came
            self._idle.append(connection)
        return found if ready else None

    def _lost(self, connection: Connection) -> None:
        logger.error("reading.process_lost")
        self._end(connection)

    def _end(self, connection: Connection) -> None:
        connection.close()
        # An idle one ends with its connection, a busy one would do its work first, which may have
        # no end.
        process = self._processes.pop(connection, None)
        if process is not None and process.is_alive():
            process.kill()
            process.join()

    def _start(self) -> None:
        try:
            context = _context()
            for _ in range(self._number):
                ours, theirs = context.Pipe()
                # A daemon: whoever exits does not wait for it.
                process = context.Process(
                    target=pieces.serve, args=(theirs, dict(os.environ), *self._told), daemon=True
                )
                with _starting:
                    process.start()
                theirs.close()
                self._add(ours, process)
        except (OSError, EOFError, RuntimeError) as error:
            # There may be no place for a socket, such as a writable /tmp, or no room for another
            # process.
            logger.warning("reading.no_processes", **log.cause(error))

    def _add(self, connection: Connection, process: ForkServerProcess) -> None:
        with self._lock:
            self._processes[connection] = process
            if self._is_over:
                self._end(connection)
            else:
                self._idle.append(connection)

"""A pool of reader processes: they use several cores, and not the GIL of the process that asks."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, ForkProcess, ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from typing import Generic, Literal, Self, TypeVar

from xalen_batch import log
from xalen_batch.validation import pieces
from xalen_batch.validation.pieces import Crash

logger = log.get(__name__)

A = TypeVar("A")
T = TypeVar("T")

# The start of a process: a fork of this one, or of a server without threads.
Method = Literal["fork", "forkserver"]

# Seconds that entering a pool waits for its first process, if the caller does not say.
START_TIMEOUT = 0.1
# Modules that the fork server imports once for all its processes.
PRELOADED = [
    f"xalen_batch.{name}"
    for name in (
        "validation.pieces",
        "validation.estimate_file",
        "schedules.preflight_file",
        "schedules.collect_lines",
        "api.anthropic.document",
    )
]

# Guards the set in which `multiprocessing` keeps its children: threads may start several at a time.
_starting = threading.Lock()


def prepare() -> None:
    """Start the fork server now: it takes half a second, which the first pool would wait for."""
    with suppress(OSError):
        _context("forkserver")
        ensure_running()


def _context(method: Method) -> ForkServerContext | ForkContext:
    if method == "fork":
        return multiprocessing.get_context("fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class ReaderPool(Generic[A, T]):
    """Up to `number` processes, each of which does `work` for one argument at a time.

    A process may be lost at any time, or never start, so the caller has to be ready to do the work
    itself. Entering waits up to `start_timeout` seconds for the first process; leaving ends all.
    `method`: "fork" only in a process without other threads, whose locks a fork would copy.
    One thread uses a pool. Its own thread starts the processes, and only shares `_add` with it.
    """

    def __init__(
        self,
        number: int,
        work: Callable[[A], T],
        *,
        niceness: int = 0,
        start_timeout: float = START_TIMEOUT,
        method: Method = "forkserver",
    ) -> None:
        self._method = method
        self._number = number
        self._niceness = niceness
        self._work = work
        self._start_timeout = start_timeout
        self._processes: dict[Connection, ForkServerProcess | ForkProcess] = {}
        self._idle: deque[Connection] = deque()
        self._busy: dict[Connection, A] = {}
        self._is_over = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        start = threading.Thread(target=self._start, name="readers", daemon=True)
        start.start()
        # Processes start within milliseconds, except before the first large file of this process:
        # the fork server takes half a second.
        start.join(self._start_timeout)
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
        """Send arguments, from the front of `todo`, to the idle processes."""
        while todo and self._idle:
            connection = self._idle.popleft()
            try:
                connection.send(todo[0])
            except OSError:
                self._lost(connection)
            else:
                self._busy[connection] = todo.popleft()

    def results(self, todo: deque[A], timeout: float) -> dict[A, T | None] | None:
        """Wait for the next results, by argument; None if none arrives within `timeout` seconds.

        A result is None after a crash. The argument of a lost process goes back to the end of
        `todo`.
        """
        found: dict[A, T | None] = {}
        ready = wait(list(self._busy), timeout)
        for connection in ready:
            assert isinstance(connection, Connection)
            argument = self._busy.pop(connection)
            try:
                received = connection.recv()
            except (EOFError, OSError):
                todo.append(argument)
                self._lost(connection)
                continue
            if isinstance(received, Crash):
                logger.error("reading.crashed", **received.cause)
            found[argument] = None if isinstance(received, Crash) else received
            self._idle.append(connection)
        return found if ready else None

    def _lost(self, connection: Connection) -> None:
        logger.error("reading.process_lost")
        self._end(connection)

    def _end(self, connection: Connection) -> None:
        connection.close()
        # An idle process ends with its connection. A busy one would finish its work first, which
        # may take for ever.
        process = self._processes.pop(connection, None)
        if process is not None and process.is_alive():
            process.kill()
            process.join()

    def _start(self) -> None:
        try:
            context = _context(self._method)
            # A process ends with its connection, so it must not hold our end itself. A fork has a
            # copy of its own, and of those of the forks before it.
            copied: list[Connection] = []
            for _ in range(self._number):
                ours, theirs = context.Pipe()
                if self._method == "fork":
                    copied.append(ours)
                # A daemon: this process exits without waiting for it.
                process = context.Process(
                    target=pieces.serve,
                    args=(theirs, dict(os.environ), self._niceness, self._work, copied),
                    daemon=True,
                )
                with _starting:
                    process.start()
                theirs.close()
                self._add(ours, process)
        except (OSError, EOFError, RuntimeError) as error:
            # For example, /tmp is not writable for the fork server's socket, or the limit of
            # processes is reached.
            logger.warning("reading.no_processes", **log.cause(error))

    def _add(self, connection: Connection, process: ForkServerProcess | ForkProcess) -> None:
        with self._lock:
            self._processes[connection] = process
            if self._is_over:
                self._end(connection)
            else:
                self._idle.append(connection)

"""Processes that read pieces of a file for a worker: on several cores, and beside the lines of others that run in this one."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from typing import Self

from xalen_batch import log
from xalen_batch.catalog import Model
from xalen_batch.pipeline import pieces
from xalen_batch.pipeline.pieces import Crash, Piece, Place

logger = log.get(__name__)

AT_ONCE = 0.1


class Readers:
    """So many processes, of which each reads one piece after the other. They come one by one, and are gone on leaving.

    A process may be lost at any time, or never come: whoever asks has to be ready to read by itself.
    """

    def __init__(self, number: int, endpoint: str, models: Mapping[str, Model]) -> None:
        self._number = number
        self._told = (endpoint, models)
        self._idle: deque[Connection] = deque()
        self._busy: dict[Connection, Place] = {}
        self._is_over = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        start = threading.Thread(target=self._start, name="readers", daemon=True)
        start.start()
        # Mostly they are there at once. The fork server of a worker's first large file takes half a second to come.
        start.join(AT_ONCE)
        return self

    def __exit__(self, *_: object) -> None:
        # At the end of its connection a process ends, once it is through with its piece.
        with self._lock:
            self._is_over = True
            for connection in (*self._idle, *self._busy):
                connection.close()

    @property
    def are_busy(self) -> bool:
        return bool(self._busy)

    def give(self, todo: deque[Place]) -> None:
        """Hand out what is to be read, from the front, to those that have nothing to do."""
        while todo and self._idle:
            connection = self._idle.popleft()
            try:
                connection.send(todo[0])
            except OSError:
                self._lost(connection)
            else:
                self._busy[connection] = todo.popleft()

    def back(self, todo: deque[Place], timeout: float) -> dict[Place, Piece | None] | None:
        """What has been read, as soon as something has; None if that takes too long. What a lost process had is to be read again."""
        found: dict[Place, Piece | None] = {}
        ready = wait(list(self._busy), timeout)
        for connection in ready:
            assert isinstance(connection, Connection)
            place = self._busy.pop(connection)
            try:
                came = connection.recv()
            except (EOFError, OSError):
                todo.append(place)
                self._lost(connection)
                continue
            if isinstance(came, Crash):
                logger.error("reading.crashed", **came.cause)
            found[place] = None if isinstance(came, Crash) else came
            self._idle.append(connection)
        return found if ready else None

    def _lost(self, connection: Connection) -> None:
        logger.error("reading.process_lost")
        connection.close()

    def _start(self) -> None:
        try:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([pieces.__name__])
            for _ in range(self._number):
                ours, theirs = context.Pipe()
                # A daemon: whoever exits does not wait for it.
                process = context.Process(target=pieces.serve, args=(theirs, dict(os.environ), *self._told), daemon=True)
                process.start()
                theirs.close()
                self._add(ours)
        except (OSError, EOFError, RuntimeError) as error:
            # There may be no place for a socket, such as a writable /tmp, or no room for another process.
            logger.warning("reading.no_processes", **log.cause(error))

    def _add(self, connection: Connection) -> None:
        with self._lock:
            if self._is_over:
                connection.close()
            else:
                self._idle.append(connection)

"""What a process does that reads pieces of files. It starts anew for a large file: what is imported here makes the first one wait."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from typing import NamedTuple

from xalen_batch import storage
from xalen_batch.catalog import Model
from xalen_batch.pipeline.faults import Fault
from xalen_batch.pipeline.prefix import Marker
from xalen_batch.pipeline.scan import GoodLine, Reader
from xalen_batch.pipeline.split import Split


class Gathered:
    """Good lines on their way into a split."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.split = Split()
        self._marker = Marker()
        # They read each pair on its own, and have no prefix cache.
        self._rerankers = {model.id for model in models.values() if model.is_reranker}

    def add(self, line: GoodLine) -> None:
        self.split.add(line.model, line.span, () if line.model in self._rerankers else self._marker.marks(line.prompt))


class Piece(NamedTuple):
    """Good lines, read as if the file began with them. `lines`: with the blank ones."""

    split: Split
    custom_ids: list[str]
    lines: int


def begin(environment: Mapping[str, str]) -> None:
    """Of a process that reads: the settings of its worker, and its end."""
    os.environ.clear()
    os.environ.update(environment)
    # Ctrl-C in a terminal is for the worker, which lets this end what it has begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_worker, daemon=True).start()
    # Good lines leave no cycles, and a look for some would copy all memory that it shares with other processes.
    gc.disable()


def _end_with_worker() -> None:
    """However the worker dies: nobody else would tell a process that waits for pieces."""
    if worker := multiprocessing.parent_process():
        worker.join()
        os._exit(1)


def read(key: str, start: int, end: int, endpoint: str, models: Mapping[str, Model]) -> Piece | None:
    """None: there is something here that whoever reads the whole file has to look at, or it cannot be read."""
    reader, gathered = Reader(endpoint, models), Gathered(models)
    try:
        for line in reader.read(storage.chunks(key, start, end), start=start):
            if isinstance(line, Fault):
                return None
            gathered.add(line)
    except storage.AWAY:
        return None
    return Piece(gathered.split, list(reader.seen), reader.last_line)

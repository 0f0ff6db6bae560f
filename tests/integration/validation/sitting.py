"""A process with two reader processes that wait for pieces.

    python -m tests.integration.validation.sitting FOLDER fork|forkserver

Each reader leaves a file in FOLDER, named by its process id.
"""

import os
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from xalen_batch.validation import pieces
from xalen_batch.validation.pool import ReaderPool

serve = pieces.serve


def noted(
    connection: Connection,
    environment: dict[str, str],
    niceness: int,
    folder: Any,
    copied: Sequence[Connection],
) -> None:
    Path(folder, str(os.getpid())).touch()
    serve(connection, environment, niceness, folder, copied)


if __name__ == "__main__":
    # Import this module by its name: `__main__` is another module in the reader processes.
    from tests.integration.validation import sitting

    pieces.serve = sitting.noted
    with ReaderPool[Any, Any](2, sys.argv[1], method=sys.argv[2]):  # type: ignore[arg-type]
        threading.Event().wait()

"""A process that has a file read by others who never come to an end.

    python -m tests.integration.sitting FOLDER

Each of them leaves a file in FOLDER, named by its process id.
"""

import os
import sys
import threading
from pathlib import Path
from typing import Any

from xalen_batch.pipeline import pieces, reading


def sit(folder: str, *_: Any) -> None:
    Path(folder, str(os.getpid())).touch()
    threading.Event().wait()


if __name__ == "__main__":
    # By its name elsewhere: `__main__` is another module in the processes.
    from tests.integration import sitting

    pieces.read = sitting.sit  # type: ignore[assignment]
    place = (sys.argv[1], 0, 0, "", {})
    with reading._submitted([place, place]) as futures:
        futures[0].result()

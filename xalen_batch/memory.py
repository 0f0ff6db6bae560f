"""How a process that runs for weeks keeps its memory: what is free goes back, and what stays is not looked at again."""

import ctypes
import gc
import sys
from contextlib import suppress

# Of malloc.h. Each thread would get an arena of its own, which keeps the most that the thread ever had.
M_ARENA_MAX = -8
ARENAS = 2

# Objects made since the last look before Python looks for cycles among them: lines come by the thousand
# and leave no cycle. The default of 700 is a look every few lines.
YOUNG_OBJECTS = 50_000


def settle() -> None:
    """To be called once, when everything is loaded and no thread runs yet."""
    if sys.platform == "linux":
        # Only glibc has it.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)

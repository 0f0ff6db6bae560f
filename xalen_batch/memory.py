"""How a process that runs for weeks keeps its memory: what is free goes back, and what stays is not looked at again."""

import ctypes
import gc
import sys
from contextlib import suppress

# Of malloc.h. Each thread would get an arena of its own, which keeps the most that the thread ever had;
# and blocks of megabytes would come from there, too, once a few of them had been freed.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
ARENAS = 2
MAPPED_BYTES = 512 * 1024

# Objects made since the last look before Python looks for cycles among them: lines come by the thousand
# and leave no cycle. The default of 700 is a look every few lines.
YOUNG_OBJECTS = 50_000


def settle() -> None:
    """To be called once, when everything is loaded and no thread runs yet."""
    if sys.platform == "linux":
        # Only glibc has it.
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_ARENA_MAX, ARENAS)
            mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)

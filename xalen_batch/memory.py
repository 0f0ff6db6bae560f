"""How a process that runs for weeks keeps its memory: what is free goes back, and what stays is not
looked at again.
"""

import ctypes
import gc
import sys
from contextlib import suppress

# Of malloc.h. Each thread would get an arena of its own, which keeps the most that the thread ever
# had; Python runs one thread at a time anyway.
M_ARENA_MAX = -8
ARENAS = 1

# Objects more than at the last look, before Python looks for cycles among them: lines come by the
# thousand and leave none, and the default of 700 is a look at every few of them. Sessions and
# connections do leave some, with what they hold, so the old ones are looked at as well: what was
# there at the start is not among them.
YOUNG_OBJECTS = 5_000
MIDDLE_AGED, OLD = 10, 5


def settle() -> None:
    """To be called once, when everything is loaded and no thread runs yet."""
    _malloc("mallopt", M_ARENA_MAX, ARENAS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, MIDDLE_AGED, OLD)


def trim() -> None:
    """Give free pages back to the system, after much was held and freed. It takes some
    milliseconds.

    malloc keeps free memory below the last block in use. A lower M_MMAP_THRESHOLD would give back
    each large block by itself, at a page fault for every 4 KiB of it: that nearly doubles the CPU
    of a download.
    """
    _malloc("malloc_trim", 0)


def _malloc(function: str, *arguments: int) -> None:
    """Call a function that only glibc has."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None)[function](*arguments)

"""Memory of a process: malloc arenas, GC thresholds, and returning free pages."""

import atexit
import ctypes
import gc
import sys
from contextlib import suppress

# From malloc.h. By default threads get arenas of their own, each of which keeps the peak of its
# threads. One is enough, since the GIL runs one thread at a time.
M_ARENA_MAX = -8
ARENAS = 1

# GC threshold of the youngest generation. Lines allocate thousands of objects and no cycles, so the
# default of 700 collects too often.
YOUNG_OBJECTS = 5_000
# Thresholds of the older generations. Sessions and connections leave cycles, so these are collected
# too, without the objects that `settle` froze.
MIDDLE_AGED, OLD = 10, 5

# GC threshold while modules are imported: they allocate some 100,000 objects, none of them garbage.
OBJECTS_OF_IMPORTS = 100_000


def spare_imports() -> None:
    """Keep the GC from walking the modules, at the start and at the exit of a process.

    Python collects every generation several times while it ends, although the kernel frees the
    memory anyway; frozen objects are left out. Saves 0.5 s of CPU for a process that serves, which
    calls `settle` as well.
    """
    gc.set_threshold(OBJECTS_OF_IMPORTS, MIDDLE_AGED, OLD)
    atexit.register(gc.freeze)


def settle() -> None:
    """Set malloc and the GC up for a long life. Called once by an entry point, on the main thread.

    All modules are loaded by then, and no other thread runs.
    """
    _malloc("mallopt", M_ARENA_MAX, ARENAS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, MIDDLE_AGED, OLD)


def trim() -> None:
    """Return free pages to the system, after large amounts were freed. Takes some milliseconds.

    malloc keeps free memory below the last block in use. A lower M_MMAP_THRESHOLD would return each
    large block when it is freed, but costs a page fault for every 4 KiB: that nearly doubles the
    CPU time of a download.
    """
    _malloc("malloc_trim", 0)


def _malloc(function: str, *arguments: int) -> None:
    """Call a function that only glibc has."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None)[function](*arguments)

"""How the process asks the C library for memory: what was freed goes back to the system at once.

glibc raises the size from which it maps a block of its own each time that such a block is freed, so that after the first
large vectors all later ones lie in its heaps, whose freed parts stay with the process; and each thread gets heaps of its own.
A server that takes turns between uploads, sums and models would hold the sum of their peaks instead of the largest.
"""

from __future__ import annotations

import ctypes

LARGE_BYTES = 256 * 1024
ARENAS = 2

# From glibc's malloc.h; setting any of the first two also ends the automatic rise.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def return_what_is_freed() -> bool:
    """Fix glibc's thresholds and its number of heaps; False, and nothing done, with another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_M_TRIM_THRESHOLD: LARGE_BYTES, _M_MMAP_THRESHOLD: LARGE_BYTES, _M_ARENA_MAX: ARENAS}
    return all(mallopt(name, value) == 1 for name, value in settings.items())


def trim() -> bool:
    """Return the freed pages between blocks in use to the system too; False where nothing was to be had.

    It walks the heaps, a millisecond for each ten megabytes, so it is for the moment before much memory is needed.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return malloc_trim is not None and bool(malloc_trim(0))

"""The C library's memory, set up for large blocks that come and go."""

from __future__ import annotations

import ctypes

# Names and numbers of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE = 2**31 - 1


def keep_freed_memory() -> bool:
    """Has glibc keep what is freed, for this process, instead of giving it back to the kernel.

    Activations of some megabytes are freed and asked for again in each layer. By default they are paged in anew each
    time, which took a tenth of a simulation's time (and none of that of a single forward pass, whose blocks are few).

    Returns:
        Whether there is a glibc that does so; elsewhere nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, LARGE))

"""Memory that the C library keeps for the next batch."""

from __future__ import annotations

import ctypes

# The numbers of `M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` in <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Bytes that are kept, about the arrays of a large batch; and bytes of the largest array that is
# kept, glibc's own limit (DEFAULT_MMAP_THRESHOLD_MAX on 64 bits). Larger ones go back to the
# system.
_KEPT, _LARGEST = 256 << 20, 32 << 20


def keep_freed_memory() -> None:
    """Makes this process keep freed memory for its next allocations; without effect where the C
    library is not glibc.

    Batch after batch takes arrays of the same sizes. Memory that is given back to the system in
    between comes back page by page. Each page is a fault and is filled with zeros: hundreds for a
    batch of a small network.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, _KEPT)
    mallopt(_MMAP_THRESHOLD, _LARGEST)

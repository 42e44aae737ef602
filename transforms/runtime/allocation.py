"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes

# As <malloc.h> numbers them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# The largest that every glibc takes as the second; arrays beyond it are given back as before.
_KEPT, _LARGEST = 256 << 20, 32 << 20


def keep_freed_memory() -> None:
    """Makes this process keep what it frees for what it allocates next; without effect where the C
    library is not glibc.

    Batch after batch takes arrays of the same sizes. Given back to the system in between, they come
    back page by page, each of which is a fault and has to be filled with zeros: hundreds for a
    batch of a small network.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, _KEPT)
    mallopt(_MMAP_THRESHOLD, _LARGEST)

"""The C library's allocator, set to keep its pages."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1


def keep_pages() -> bool:
    """Keep memory that tensors free for the next ones, where the C library is glibc.

    By default it gives tensors of 32 MB and more back to the system at once, whose pages every
    batch then faults in again: an eighth of the time of embedding on a CPU. The process holds on to
    the most that it has needed.

    Returns:
        Whether that could be set.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, 1 << 28))
    return min(mallopt(setting, value) for setting, value in settings) == 1

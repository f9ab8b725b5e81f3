"""Large pages for what is read a row here and a row there."""

from __future__ import annotations

import ctypes
import mmap

from torch import Tensor

_HUGE = 2 << 20


def advise_huge_pages(matrix: Tensor) -> None:
    """Ask Linux to back a matrix in the host's memory by pages of 2 MB, before it is first written.

    Sampled rows lie on a page of 4 KB each, whose address must be looked up: a step over a tenth of
    400,000 classes takes 9 % longer then. Where the system has no such pages, nothing changes.
    """
    size = matrix.numel() * matrix.element_size()
    if not hasattr(mmap, "MADV_HUGEPAGE") or matrix.device.type != "cpu" or size < _HUGE:
        return
    start = -(-matrix.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = matrix.data_ptr() + size - start
    # Its result says whether the system follows, and nothing depends on that.
    ctypes.CDLL(None).madvise(
        ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(mmap.MADV_HUGEPAGE)
    )

"""Large pages for large buffers.

A buffer of many megabytes is new to the process at each call, and the system hands it out page by page as it is first
touched: 512 times for what one large page holds. Linux gives large pages to those who ask.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys

from torch import Tensor

LARGE = 4 << 20  # bytes from which asking pays
_MADV_HUGEPAGE = 14


@functools.cache
def _madvise() -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux":
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise


def in_large_pages(tensor: Tensor) -> Tensor:
    """The tensor, which nobody has written to yet; its memory comes in large pages where the system has them."""
    size, advise = tensor.numel() * tensor.element_size(), _madvise()
    if size >= LARGE and advise is not None:
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(start, tensor.data_ptr() + size - start, _MADV_HUGEPAGE)  # a system without them says no, which is well
    return tensor

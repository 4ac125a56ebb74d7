"""Memory for large buffers: in large pages, and used again.

The system hands out memory page by page as it is first touched, and clears each: for a buffer of many megabytes that is
new at each call this takes a good part of the call's time. Linux gives large pages, 512 in one, to those who ask; and
what the engine alone has used is kept for its next call, as much as was in use at one time and no more than `KEPT`
bytes.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
import threading
import weakref

import torch
from torch import Tensor

LARGE = 4 << 20  # bytes from which asking pays
KEPT = 512 << 20  # bytes that are kept for later at most
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


def used_again(like: Tensor, *shape: int) -> Tensor:
    """A tensor that nobody has written to, of the kind of ``like``, for the engine's own use.

    Once it is gone, wherever that is, its memory is kept for the next one. Not for what callers are given: such memory
    cannot be made larger.
    """
    count = torch.Size(shape).numel()
    size = count * like.element_size()
    if size < LARGE or sys.platform != "linux":
        return like.new_empty(shape)
    return as_new(torch.frombuffer(store.take(size), dtype=like.dtype, count=count)).view(shape)


def as_new(tensor: Tensor) -> Tensor:
    """A tensor in memory that was used before, full of NaN where PyTorch fills what it gives out itself."""
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if fill and torch.are_deterministic_algorithms_enabled():
        tensor.view(torch.uint8).fill_(255)
    return tensor


class Store:
    """Memory that was given back, and is given out again."""

    def __init__(self) -> None:
        self.free: list[mmap.mmap] = []  # the latest last
        self._lock = threading.Lock()

    def take(self, size: int) -> ctypes.Array:
        """So many bytes; they come back by themselves when nothing refers to them any more."""
        with self._lock:
            memory = self._fitting(size)
            if memory is None:
                self._release(size)
                memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                memory.madvise(mmap.MADV_HUGEPAGE)
        taken = (ctypes.c_byte * size).from_buffer(memory)
        weakref.finalize(taken, self._back, memory).atexit = False
        return taken

    def _fitting(self, size: int) -> mmap.mmap | None:
        """The smallest that is free and large enough, unless it is more than twice as large."""
        fitting = min((m for m in self.free if size <= len(m) <= 2 * size), key=len, default=None)
        if fitting is not None:
            self.free.remove(fitting)
        return fitting

    def _release(self, size: int) -> None:
        """Lets go of as much as is to be made anew: so there is never more than was in use at one time."""
        while self.free and size > 0:
            size -= len(self.free.pop(0))

    def _back(self, memory: mmap.mmap) -> None:
        """Called wherever the last reference goes, maybe within `take`: so it waits for nobody."""
        if sum(map(len, self.free)) + len(memory) <= KEPT:
            self.free.append(memory)


store = Store()

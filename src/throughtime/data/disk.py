"""An array that lies on disk."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray


class OnDisk:
    """Numbers in a temporary file that goes when the last user of them does.

    A slice is a view, as with any array, and `numpy.asarray` reads it; nothing else takes memory. (A memory map would
    do the same, but the pages that it touched count as the process's own until the system wants them back.)

    >>> array = OnDisk([np.arange(3), np.arange(4)], np.uint8)
    >>> len(array), np.asarray(array[2:][:3]).tolist()
    (7, [2, 0, 1])
    """

    def __init__(self, parts: Iterable[NDArray[Any]], dtype: DTypeLike) -> None:
        """Writes the parts, one behind the other.

        Raises:
            OSError: the disk is full.
        """
        self.dtype = np.dtype(dtype)
        self._file = _File()
        size = 0
        for part in parts:
            size += self._file.handle.write(part.astype(self.dtype, copy=False).tobytes())
        self._file.handle.flush()
        self._range = range(size // self.dtype.itemsize)

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, part: slice) -> OnDisk:
        chosen = self._range[part]
        if chosen.step != 1:
            raise ValueError("an array on disk is read forwards, without gaps")
        view = OnDisk.__new__(OnDisk)
        view.dtype, view._file, view._range = self.dtype, self._file, chosen
        return view

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        handle, size = self._file.handle, self.dtype.itemsize
        handle.seek(self._range.start * size)
        return np.frombuffer(handle.read(len(self) * size), dtype=self.dtype).astype(dtype or self.dtype)


class _File:
    """A temporary file, closed when nobody needs it any more."""

    def __init__(self) -> None:
        self.handle: BinaryIO = tempfile.TemporaryFile(prefix="throughtime-")  # noqa: SIM115
        weakref.finalize(self, self.handle.close)

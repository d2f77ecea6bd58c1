"""Reused memory and fast copies for the arrays that a conversion streams through."""

import itertools
import math

import numpy as np

ALIGNMENT = 64
"""Bytes. XLA's CPU backend takes arrays that begin at a multiple of this without a copy; torch maps such tensors in place."""
TILE = (512, 32)
"""Rows and columns of a transposed matrix that are copied together: a column of a tile fills one cache line."""


class Scratch:
    """A block of memory that is used again for every array, because fresh pages cost more than the work on them.

    Arrays begin at a multiple of 64 bytes, so that XLA's CPU backend takes them without a copy.
    """

    def __init__(self, size: int = 0):
        self._memory, self._used = _aligned(size), 0

    def reset(self, size: int = 0) -> None:
        """Makes at least ``size`` bytes available; the arrays taken so far become invalid."""
        self._used = 0
        if size > len(self._memory):
            self._memory = _aligned(0)  # frees the old block before the larger one is allocated
            self._memory = _aligned(size)

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An uninitialized array. Raises MemoryError when too little is left."""
        size = math.prod(shape) * dtype.itemsize
        block = self._memory[self._used : self._used + size]
        if len(block) < size:
            raise MemoryError(f"{size} bytes requested, {self._used} of {len(self._memory)} in use")
        self._used += self.footprint(size)
        return block.view(dtype).reshape(shape)

    @staticmethod
    def footprint(size: int) -> int:
        """Bytes that an array of ``size`` bytes occupies, padding up to the next array included."""
        return size + -size % ALIGNMENT


def _aligned(size: int) -> np.ndarray:
    memory = np.empty(size + ALIGNMENT, np.uint8)
    return memory[-memory.ctypes.data % ALIGNMENT :][:size]


def copy_into(target: np.ndarray, array: np.ndarray) -> None:
    """Copies ``array``, of any strides, into ``target``, which has the same shape and is C-contiguous.

    A transposed matrix is copied in tiles that fit the cache, five times as fast as numpy does it.
    """
    if array.dtype == target.dtype and array.dtype.itemsize == 2:
        target, array = target.view(np.uint16), array.view(np.uint16)  # numpy copies bfloat16 one number at a time
    fastest = int(np.argmin(array.strides)) if array.ndim > 1 and not array.flags.c_contiguous else array.ndim - 1
    if fastest == array.ndim - 1:
        target[...] = array
        return
    others = [range(size) for axis, size in enumerate(array.shape[:-1]) if axis != fastest]
    for fixed in itertools.product(*others):
        for row in range(0, array.shape[fastest], TILE[0]):
            for column in range(0, array.shape[-1], TILE[1]):
                tile = (*fixed[:fastest], slice(row, row + TILE[0]), *fixed[fastest:], slice(column, column + TILE[1]))
                target[tile] = array[tile]

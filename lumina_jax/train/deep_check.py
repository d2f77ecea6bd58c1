"""Every number of a checkpoint read once and compared to the checksums that were recorded at its save."""

import itertools
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
import tensorstore
from etils import epath

from lumina_jax.train.integrity import (
    CHANGED,
    array_names,
    damage,
    open_array,
    part_checksum,
    read_error,
    saved_checksums,
)

PART_BYTES = 1 << 26
"""Of an array in memory at a time, about."""


def deep_damage(checkpoint: epath.Path, advance: Callable[[int], object] = lambda count: None) -> str:
    """What is wrong with ``checkpoint``, in words, after reading all of it; empty when every array is as it was saved.

    Calls ``advance`` with the number of bytes of each part that was compared.
    """
    if reason := damage(checkpoint):
        return reason
    saved = saved_checksums(checkpoint)
    for name in sorted(array_names(checkpoint)):
        try:
            store = open_array(checkpoint, name, file_io_mode={"mode": "memmap"})
            total = sum(_part_sums(store, advance)) % 2**32
        except ValueError as error:  # tensorstore's error for whatever it cannot read
            if not (reason := read_error(error)):
                raise
            return reason
        if total != saved.get(name, total):
            return CHANGED.format(name=name)
    return ""


def stored_bytes(checkpoint: epath.Path) -> int:
    """The size in bytes of all arrays of a checkpoint that is not damaged."""
    stores = (open_array(checkpoint, name) for name in array_names(checkpoint))
    return sum(math.prod(store.shape) * store.dtype.numpy_dtype.itemsize for store in stores)


def _part_sums(store: tensorstore.TensorStore, advance: Callable[[int], object]) -> Iterator[int]:
    itemsize = store.dtype.numpy_dtype.itemsize
    for starts, cuts in _parts(store.shape, itemsize):
        part = np.ascontiguousarray(store[cuts].read().result())
        yield int(_part_checksum(part, np.asarray(starts, np.uint32)))
        advance(part.nbytes)


_part_checksum = jax.jit(part_checksum)


def _parts(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Where the parts of about PART_BYTES of an array start, and their slices: its first axes are cut into single places."""
    part = list(shape)
    for axis, size in enumerate(shape):
        rest = math.prod(shape[axis + 1 :]) * itemsize
        part[axis] = min(size, max(1, PART_BYTES // max(rest, 1)))
        if part[axis] > 1:
            break
    for starts in itertools.product(*(range(0, size, step) for size, step in zip(shape, part, strict=True))):
        yield starts, tuple(slice(start, start + step) for start, step in zip(starts, part, strict=True))

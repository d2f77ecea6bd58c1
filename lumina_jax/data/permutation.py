"""Random permutations of any size that take no memory: each element's image is computed on demand."""

import numpy as np

WORD = 2**64 - 1
ROUNDS = 3
HALF = np.uint64(32)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key_of(*values: int | np.ndarray) -> np.ndarray:
    """A key u64[n] that depends on each of ``values``, integers or arrays i64[n], and on their order."""
    key = np.zeros(1, np.uint64)
    for value in values:
        word = np.array([value & WORD], np.uint64) if isinstance(value, int) else value.astype(np.uint64)
        key = _mix(key + word + GOLDEN)
    return key


def shuffled(index: np.ndarray, size: int | np.ndarray, key: np.ndarray) -> np.ndarray:
    """The image i64[n] of each ``index`` i64[n], 0 <= index < size, under the permutation of its ``size`` and ``key`` u64[n].

    For each key and each size below 2**62 this is a bijection of range(size). Indices are cells of the smallest near-square
    grid with room for them. A round rotates every row, then every column, by a hash of its number. Cycle-walking: values
    outside the range are permuted again (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    index, size, key = np.broadcast_arrays(index, size, key)
    height = np.ceil(np.sqrt(size)).astype(np.int64)
    width = -(-size // height)
    image = _permute_cells(index, height, width, key)
    while len(outside := np.flatnonzero(image >= size)):
        image[outside] = _permute_cells(image[outside], height[outside], width[outside], key[outside])
    return image


def _permute_cells(cell: np.ndarray, height: np.ndarray, width: np.ndarray, key: np.ndarray) -> np.ndarray:
    y, x = (coordinate.astype(np.uint64) for coordinate in np.divmod(cell, width))
    height, width = height.astype(np.uint64), width.astype(np.uint64)
    for _ in range(ROUNDS):
        x = _rotate(x, y, width, key)
        key = key + GOLDEN
        y = _rotate(y, x, height, key)
        key = key + GOLDEN
    return (y * width + x).astype(np.int64)


def _rotate(a: np.ndarray, b: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """(a + a hash of b) mod size, for a < size < 2**32."""
    a = a + ((_mix(key ^ (b * GOLDEN)) >> HALF) * size >> HALF)
    return np.minimum(a, a - size)  # unsigned: a - size wraps around to a large number where a < size


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

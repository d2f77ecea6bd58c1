"""Random orders that take no memory: where an element goes is computed when it is asked for."""

import numpy as np

WORD = 2**64 - 1
ROUNDS = 3
HALF = np.uint64(32)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key_of(*parts: int | np.ndarray) -> np.ndarray:
    """A key u64[n] that depends on each of ``parts``, whole numbers or arrays of them [n], and on their order."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        word = np.array([part & WORD], np.uint64) if isinstance(part, int) else part.astype(np.uint64)
        key = _mixed(key + word + GOLDEN)
    return key


def shuffled(index: np.ndarray, size: int | np.ndarray, key: np.ndarray) -> np.ndarray:
    """Where ``index`` i64[n], each 0 <= index < size, stands in the order of its ``size`` i64[n] and ``key`` u64[n] -> i64[n].

    For each size, below 2**62, and key this is a bijection of range(size). Numbers are points of the smallest rectangle near
    a square with room for them; a round turns every row, then every column by a hash of its number, and who lands outside
    of the range goes on until inside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    index, size, key = np.broadcast_arrays(index, size, key)
    high = np.ceil(np.sqrt(size)).astype(np.int64)
    wide = -(-size // high)
    at = _moved(index, high, wide, key)
    while len(outside := np.flatnonzero(at >= size)):
        at[outside] = _moved(at[outside], high[outside], wide[outside], key[outside])
    return at


def _moved(at: np.ndarray, high: np.ndarray, wide: np.ndarray, key: np.ndarray) -> np.ndarray:
    y, x = (part.astype(np.uint64) for part in np.divmod(at, wide))
    high, wide = high.astype(np.uint64), wide.astype(np.uint64)
    for _ in range(ROUNDS):
        x = _turned(x, y, wide, key)
        key = key + GOLDEN
        y = _turned(y, x, high, key)
        key = key + GOLDEN
    return (y * wide + x).astype(np.int64)


def _turned(a: np.ndarray, b: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """(a + a hash of b) mod size, for a < size < 2**32."""
    a = a + ((_mixed(key ^ (b * GOLDEN)) >> HALF) * size >> HALF)
    return np.minimum(a, a - size)  # unsigned: below zero is beyond everything


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

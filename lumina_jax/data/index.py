"""All records of all folders, found by how long they are."""

from collections.abc import Iterator, Sequence

import numpy as np

from lumina_jax.errors import InputError
from lumina_jax.progress import ProgressDisplay

CHUNK = 2**20
WORTH_A_METER = 2**24


class LengthIndex:
    """The records of F folders, sorted by (length, folder).

    ``tokens`` are i32[N] of each folder, memory-mapped or not; a sample of n tokens has length n - 1, the positions it takes.
    ``counts`` i64[F limit+1] says how many records of each length each folder holds. Memory: four bytes for each record.

    Raises ValueError when there is no record, or when some are longer than ``limit`` or have nothing to predict.
    """

    def __init__(self, tokens: Sequence[np.ndarray], limit: int):
        self.offsets = np.cumsum([0, *map(len, tokens)])
        if self.offsets[-1] == 0:
            raise InputError("there are no records to make batches of")
        self.counts = np.array([_histogram(part, limit) for part in tokens])
        self.kinds = self.counts.T.ravel()
        """i64[(limit+1) F]: how many records of each kind, which is a length and a folder, there are."""
        self._begins = np.cumsum(self.kinds) - self.kinds
        self._ids = self._sorted(tokens, limit)

    def find(self, kind: np.ndarray, nth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ``nth`` i64[n] record of each ``kind`` i64[n], counted from 0 -> (folder, number in it), i64[n] each."""
        folder = kind % len(self.counts)
        return folder, self._ids[self._begins[kind] + nth].astype(np.int64) - self.offsets[folder]

    def _sorted(self, tokens: Sequence[np.ndarray], limit: int) -> np.ndarray:
        """The numbers of all records, those of later folders behind those of earlier ones, by kind."""
        total = int(self.offsets[-1])
        ids = np.empty(total, np.uint32 if total < 2**32 else np.uint64)
        ends = self._begins.reshape(-1, len(tokens)).copy()
        small = np.uint16 if limit < 2**16 else np.uint32  # NumPy sorts 16 bits by counting
        with ProgressDisplay("sorting records by length", total, show=total >= WORTH_A_METER) as meter:
            for folder, part in enumerate(tokens):
                for begin, lengths in _chunks(part):
                    order = np.argsort(lengths.astype(small), kind="stable")
                    lengths = lengths[order]
                    many = np.bincount(lengths, minlength=limit + 1)
                    place = np.arange(len(lengths)) + (ends[:, folder] - np.cumsum(many) + many)[lengths]
                    ids[place] = order + (self.offsets[folder] + begin)
                    ends[:, folder] += many
                    meter.advance(len(lengths))
        return ids


def _histogram(tokens: np.ndarray, limit: int) -> np.ndarray:
    """i64[limit+1]: how many records have each length."""
    counts, longest = np.zeros(limit + 2, np.int64), 0
    for _, lengths in _chunks(tokens):
        counts += np.bincount(np.clip(lengths, 0, limit + 1), minlength=limit + 2)
        longest = max(longest, int(lengths.max()))
    if counts[-1]:
        raise InputError(
            f"{counts[-1]} of {len(tokens)} records are longer than the largest bucket, {limit}: the longest takes "
            f"{longest} positions; raise data.buckets or pretokenize at a smaller size"
        )
    if counts[0]:
        raise InputError(f"{counts[0]} of {len(tokens)} records have fewer than two tokens; pretokenize them again")
    return counts[:-1]


def _chunks(tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first record, lengths i32[n]) of the records, some at a time."""
    for begin in range(0, len(tokens), CHUNK):
        yield begin, np.asarray(tokens[begin : begin + CHUNK]) - 1

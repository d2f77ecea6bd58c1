"""The records of all token folders sorted by length, and how many of each an epoch takes."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lumina_jax.errors import InputError
from lumina_jax.progress import ProgressDisplay

CHUNK = 2**20
"""Records whose lengths are read and sorted at once."""
PROGRESS_RECORDS = 2**24
"""With fewer records sorting takes a moment, and no progress is shown."""


class Ranges(NamedTuple):
    """The numbers 0 to N - 1 in consecutive ranges: range i is ``sizes[i]`` numbers from ``starts[i]`` on, i64 each."""

    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, sizes: Sequence[int] | np.ndarray) -> "Ranges":
        sizes = np.asarray(sizes, np.int64)
        return cls(np.cumsum(sizes) - sizes, sizes)

    @property
    def total(self) -> int:
        return int(self.sizes.sum())

    def locate(self, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The range of each ``number`` i64[n] and the offset in it, i64[n] each. Empty ranges hold no number."""
        index = np.searchsorted(self.starts, number, "right") - 1
        return index, number - self.starts[index]


class LengthIndex:
    """The records of F folders sorted by kind, which is (length, folder). Memory: four bytes a record.

    ``tokens`` are i32[N] of each folder, memory-mapped or not; a sample of n tokens has length n - 1. ``counts``
    i64[F limit+1] are the records of each folder and length, ``kinds`` the (limit+1) * F ranges of the sorted records.

    Raises InputError when there is no record, or when some are longer than ``limit`` or have nothing to predict.
    """

    def __init__(self, tokens: Sequence[np.ndarray], limit: int):
        self.limit = limit
        self._folders = Ranges.of([len(folder) for folder in tokens])
        if self._folders.total == 0:
            raise InputError("there are no records to make batches of")
        self.counts = np.array([_histogram(folder, limit) for folder in tokens])
        self.kinds = Ranges.of(self.counts.T.ravel())
        self._ids = self._sorted(tokens, limit)

    def find(self, kind: np.ndarray, nth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ``nth`` i64[n] record of each ``kind`` i64[n], counted from 0 -> (folder, number in it), i64[n] each."""
        folder = kind % len(self.counts)
        return folder, self._ids[self.kinds.starts[kind] + nth].astype(np.int64) - self._folders.starts[folder]

    def _sorted(self, tokens: Sequence[np.ndarray], limit: int) -> np.ndarray:
        """The ids of all records, sorted by kind. Ids count through the folders."""
        total = self._folders.total
        ids = np.empty(total, np.uint32 if total < 2**32 else np.uint64)
        starts = self.kinds.starts.reshape(-1, len(tokens)).copy()
        small = np.uint16 if limit < 2**16 else np.uint32  # NumPy sorts 16 bits by counting
        with ProgressDisplay("sorting records by length", total, show=total >= PROGRESS_RECORDS) as meter:
            for folder, folder_tokens in enumerate(tokens):
                for begin, lengths in _chunks(folder_tokens):
                    order = np.argsort(lengths.astype(small), kind="stable")
                    lengths = lengths[order]
                    same_length = Ranges.of(np.bincount(lengths, minlength=limit + 1))
                    slot = np.arange(len(lengths)) + (starts[:, folder] - same_length.starts)[lengths]
                    ids[slot] = order + (self._folders.starts[folder] + begin)
                    starts[:, folder] += same_length.sizes
                    meter.advance(len(lengths))
        return ids


def quotas(counts: np.ndarray, weights: Sequence[float], mix_by: str) -> np.ndarray:
    """How many records of each length an epoch takes from each folder, i64[F L], of the ``counts`` i64[F L] there are.

    Without ``weights`` each record comes once. Else the folders' shares of the epoch's records (``mix_by`` "records") or
    tokens ("tokens") are as their weights. An epoch ends when the slowest folder (by weight) is used up once; the others
    repeat, at every length alike up to rounding.
    """
    if not weights:
        return counts
    sizes = counts.sum(1) if mix_by == "records" else counts @ np.arange(counts.shape[1])
    rate = np.asarray(weights) / sizes
    ends = np.floor(np.cumsum(counts, 1) * (rate / rate.min())[:, None] + 0.5).astype(np.int64)
    return np.diff(ends, axis=1, prepend=0)


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
    """(number of the first record, lengths i32[n]) of CHUNK records at a time."""
    for begin in range(0, len(tokens), CHUNK):
        yield begin, np.asarray(tokens[begin : begin + CHUNK]) - 1

"""Bin packing: which lengths share a row. Decided from how many records each length has, so it takes seconds for any number."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

ATTENTION = 2e-5
"""Cost of attention relative to the weights, per position of the row: for 7B (6 * 32 layers * 4096) / (6 * 6.7e9 weights)."""
RARE = 0.05
"""The most by which a rarely used bucket is made to look dearer, so that few rows join a common bucket instead of their own."""


class Pattern(NamedTuple):
    """``rows`` rows of bucket number ``bucket`` that each hold one record of every length in ``lengths``."""

    bucket: int
    lengths: tuple[int, ...]
    rows: int


def pack(counts: np.ndarray, buckets: Sequence[int], packing: bool, first: int = 0) -> list[Pattern]:
    """Rows for ``counts`` i64[longest + 1] records of each length; the longest fits the last of ``buckets``.

    ``first`` is the number of the first bucket. Without ``packing`` each record has a row of the shortest bucket that holds it.
    With it, best fit decreasing, many rows at once: the longest length left and the lengths that fill its row best become a
    pattern, in the bucket where their positions cost least, for as many rows as there are records of all of them. A second
    round favours the buckets that the first used most.
    """
    if not packing:
        homes = np.searchsorted(buckets, np.arange(len(counts)))
        return [Pattern(first + int(homes[n]), (int(n),), int(counts[n])) for n in np.flatnonzero(counts)]
    cost = np.array([size * (1 + ATTENTION * size) for size in buckets])
    draft = _best_fit(counts, buckets, cost)
    used = np.bincount([p.bucket for p in draft], [p.rows * sum(p.lengths) for p in draft], len(buckets))
    patterns = _best_fit(counts, buckets, cost * (1 + RARE * (1 - used / max(used.max(), 1))))
    return [pattern._replace(bucket=first + pattern.bucket) for pattern in patterns]


def _best_fit(counts: np.ndarray, buckets: Sequence[int], cost: np.ndarray) -> list[Pattern]:
    """The patterns of :func:`pack` where a row of bucket n costs ``cost[n]``."""
    remaining, patterns = _Remaining(counts), []
    while remaining.longest:
        rows = [(number, remaining.fill(size)) for number, size in enumerate(buckets) if size >= remaining.longest]
        number, lengths = min(rows, key=lambda row: cost[row[0]] / sum(row[1]))
        patterns.append(Pattern(number, tuple(lengths), remaining.take(lengths)))
    return patterns


def whole_batches(
    patterns: list[Pattern], buckets: Sequence[int], rows_of: Callable[[int], int], packing: bool
) -> list[Pattern]:
    """The same records in rows that make whole batches of ``rows_of(length)`` rows, in every bucket but the longest in use.

    From the shortest bucket on, the rows that make no whole batch, the emptiest ones, are taken apart and their records packed
    into the longer buckets.
    """
    last = max(pattern.bucket for pattern in patterns)
    for number in range(last):
        emptiest_first = sorted((p for p in patterns if p.bucket == number), key=lambda p: sum(p.lengths))
        excess = sum(p.rows for p in emptiest_first) % rows_of(buckets[number])
        kept, loose = [], np.zeros(buckets[last] + 1, np.int64)
        for p in emptiest_first:
            removed = min(p.rows, excess)
            excess -= removed
            np.add.at(loose, list(p.lengths), removed)
            kept += [p._replace(rows=p.rows - removed)] * (p.rows > removed)
        longer = buckets[number + 1 : last + 1]
        patterns = [p for p in patterns if p.bucket != number] + kept + pack(loose, longer, packing, number + 1)
    return patterns


class _Remaining:
    """How many records of each length are not in a row yet."""

    def __init__(self, counts: np.ndarray):
        self._counts = counts.copy()
        # For each length the longest one, up to it, of which records are left.
        self._below = np.maximum.accumulate(np.where(counts > 0, np.arange(len(counts)), 0))

    @property
    def longest(self) -> int:
        """The longest length left; 0 when none is."""
        return int(self._below[-1])

    def fill(self, room: int) -> list[int]:
        """Lengths that fill a row of ``room`` positions: the longest left, then always the longest that fits; at the end two
        others instead, where these fill the row better."""
        spare, lengths, longest = self._counts.copy(), [], self.longest
        while longest:
            pair = self._pair(spare, room, longest) if longest < room <= 2 * longest else (longest,)
            ends = sum(pair) == room or not self._fit(spare, room - sum(pair))
            for length in pair if lengths and ends and sum(pair) > longest else (longest,):
                spare[length] -= 1
                room -= length
                lengths.append(length)
            longest = self._fit(spare, room)
        return lengths

    def take(self, lengths: list[int]) -> int:
        """Takes these lengths for as many rows as there are records of all of them; returns the number of rows."""
        row_counts = Counter(lengths)
        rows = min(int(self._counts[length]) // count for length, count in row_counts.items())
        for length, count in row_counts.items():
            self._counts[length] -= rows * count
            if self._counts[length] == 0:
                above = np.searchsorted(self._below, length, "right")
                self._below[length:above] = self._below[length - 1]
        return rows

    def _fit(self, spare: np.ndarray, room: int) -> int:
        """The longest length of ``spare`` that fits into ``room``; 0 if none does."""
        length = int(self._below[min(room, len(spare) - 1)])
        while length and not spare[length]:
            length = int(self._below[length - 1])
        return length

    def _pair(self, spare: np.ndarray, room: int, longest: int) -> tuple[int, ...]:
        """Two lengths that together fill ``room`` best, or one if no two fit; ``longest`` is at least half of the room."""
        lengths = np.arange(longest, (room - 1) // 2, -1)
        lengths = lengths[spare[lengths] > 0]
        partners = self._below[room - lengths]
        # Of a partner that this row has used up no shorter one is searched.
        partners = np.where(spare[partners] > (partners == lengths), partners, 0)
        best = int(np.argmax(lengths + partners))
        return (int(lengths[best]), int(partners[best])) if partners[best] else (int(lengths[best]),)

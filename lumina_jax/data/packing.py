"""Which lengths share a row, decided on how many records there are of each length and never on the records."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

ATTENTION = 2e-5
"""What attention adds to a position's cost for each position of its row: 7B (6 * 32 layers * 4096) / (6 * 6.7e9 weights)."""
RARE = 0.05
"""How much more a bucket of rare rows may cost: such rows go into a common bucket, not into batches of their like alone."""


class Pattern(NamedTuple):
    """``rows`` rows of bucket number ``bucket`` that each hold one record of every length in ``lengths``."""

    bucket: int
    lengths: tuple[int, ...]
    rows: int


def pack(counts: np.ndarray, buckets: Sequence[int], together: bool, first: int = 0) -> list[Pattern]:
    """Rows for ``counts`` i64[longest + 1] records of each length, none above the last of ``buckets``.

    Bucket numbers are counted from ``first``. Not ``together``: each record has a row of the shortest bucket that holds it.
    Else the longest record that is left goes into the bucket where a position of records costs least, with what fills its
    row best, and so do all like them while each of these lengths lasts: best fit decreasing, a length at a time. A second
    round favours the buckets that the first used most. It takes seconds for any number of records.
    """
    if not together:
        homes = np.searchsorted(buckets, np.arange(len(counts)))
        return [Pattern(first + int(homes[n]), (int(n),), int(counts[n])) for n in np.flatnonzero(counts)]
    cost = np.array([size * (1 + ATTENTION * size) for size in buckets])
    draft = _best_fit(counts, buckets, cost)
    used = np.bincount([p.bucket for p in draft], [p.rows * sum(p.lengths) for p in draft], len(buckets))
    found = _best_fit(counts, buckets, cost * (1 + RARE * (1 - used / max(used.max(), 1))))
    return [pattern._replace(bucket=first + pattern.bucket) for pattern in found]


def _best_fit(counts: np.ndarray, buckets: Sequence[int], cost: np.ndarray) -> list[Pattern]:
    """The rows of :func:`pack` where a row of bucket n costs ``cost[n]``."""
    shelf, found = _Shelf(counts), []
    while shelf.longest:
        rows = [(number, shelf.fill(size)) for number, size in enumerate(buckets) if size >= shelf.longest]
        number, lengths = min(rows, key=lambda row: cost[row[0]] / sum(row[1]))
        found.append(Pattern(number, tuple(lengths), shelf.take(lengths)))
    return found


def whole_batches(
    patterns: list[Pattern], buckets: Sequence[int], rows_of: Callable[[int], int], together: bool
) -> list[Pattern]:
    """The same records in rows that fill whole batches of ``rows_of(length)`` rows in every bucket but the longest in use.

    From the shortest bucket on, the rows that are too many for whole batches, the emptiest, are dissolved, and their records
    packed into the longer buckets.
    """
    last = max(pattern.bucket for pattern in patterns)
    for number in range(last):
        mine = sorted((p for p in patterns if p.bucket == number), key=lambda p: sum(p.lengths))
        spare = sum(p.rows for p in mine) % rows_of(buckets[number])
        kept, loose = [], np.zeros(buckets[last] + 1, np.int64)
        for p in mine:
            out = min(p.rows, spare)
            spare -= out
            np.add.at(loose, list(p.lengths), out)
            kept += [p._replace(rows=p.rows - out)] * (p.rows > out)
        longer = buckets[number + 1 : last + 1]
        patterns = [p for p in patterns if p.bucket != number] + kept + pack(loose, longer, together, number + 1)
    return patterns


class _Shelf:
    """Records by length, of which rows are filled."""

    def __init__(self, counts: np.ndarray):
        self._counts = counts.copy()
        self._below = np.maximum.accumulate(np.where(counts > 0, np.arange(len(counts)), 0))

    @property
    def longest(self) -> int:
        """The longest length there is; 0 when all are taken."""
        return int(self._below[-1])

    def fill(self, room: int) -> list[int]:
        """Lengths, longest first, that fill a row of ``room``: the longest there is, and then the longest that fits, until
        one or two of those that are left fill it best."""
        spare, taken, largest = self._counts.copy(), [], self.longest
        while largest:
            pair = self._pair(spare, room, largest) if largest < room <= 2 * largest else (largest,)
            ends = sum(pair) == room or not self._fit(spare, room - sum(pair))
            best = pair if taken and ends and sum(pair) > largest else (largest,)
            for length in best:
                spare[length] -= 1
                room -= length
                taken.append(length)
            largest = self._fit(spare, room)
        return taken

    def take(self, lengths: list[int]) -> int:
        """Takes these lengths as often as all of them last, and says how often that was."""
        times = Counter(lengths)
        rows = min(int(self._counts[length]) // often for length, often in times.items())
        for length, often in times.items():
            self._counts[length] -= rows * often
            if self._counts[length] == 0:
                above = np.searchsorted(self._below, length, "right")
                self._below[length:above] = self._below[length - 1]
        return rows

    def _fit(self, spare: np.ndarray, room: int) -> int:
        """The longest length that is left and fits into ``room``; 0 if none does."""
        length = int(self._below[min(room, len(spare) - 1)])
        while length and not spare[length]:
            length = int(self._below[length - 1])
        return length

    def _pair(self, spare: np.ndarray, room: int, largest: int) -> tuple[int, ...]:
        """Two lengths that together fill ``room`` best, or one if no two fit; ``largest`` is at least half of the room."""
        lengths = np.arange(largest, (room - 1) // 2, -1)
        lengths = lengths[spare[lengths] > 0]
        partners = self._below[room - lengths]
        # Where the partner is all taken, what fits beside it is left to the next search.
        partners = np.where(spare[partners] > (partners == lengths), partners, 0)
        at = int(np.argmax(lengths + partners))
        return (int(lengths[at]), int(partners[at])) if partners[at] else (int(lengths[at]),)

"""Which records make up which batch: a pure function of (seed, step) and of how long the records are.

Six records of 3, 8, 4, 5, 2 and 3 positions, with ``DataConfig(buckets=(4, 8), batch=1)``, which makes batches of two rows
of 4 positions or of one row of 8::

    records    r0 ###   r1 ########   r2 ####   r3 #####   r4 ##   r5 ###

    patterns   bucket 4:  [3  ] [4   ]                 which lengths share a row (packing.py); the length 2 would be a third
               bucket 8:  [8       ] [5    3  ] [2 ]   row of bucket 4, which fills no batch, so it has a row of bucket 8

    batches    epoch 0 (seed 0)                        epoch 1: other batches and rows, and r5 instead of r0 beside r3
               step 0   [r3   r0 ]                     step 4   [r3   r5 ]
               step 1   [r4      ]                     step 5   [r1      ]
               step 2   [r1      ]                     step 6   [r4      ]
               step 3   [r2  ]                         step 7   [r2  ]
                        [r5  ]                                  [r0  ]

The patterns are decided once, from how many records there are of each length. Three random permutations (permutation.py), new
ones in every epoch, are evaluated when a step is asked for: of the epoch's batches, of the rows of each bucket, and of the
records of each length. Nothing is stored per batch or row.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lumina_jax.config import DataConfig
from lumina_jax.data.packing import Pattern, pack, whole_batches
from lumina_jax.data.permutation import key_of, shuffled
from lumina_jax.errors import InputError
from lumina_jax.progress import ProgressDisplay

BATCHES, ROWS, RECORDS = range(3)
"""What a permutation is of: a part of its key."""
CHUNK = 2**20
"""Records whose lengths are read and sorted at once."""
PROGRESS_RECORDS = 2**24
"""With fewer records sorting takes a moment, and no progress is shown."""


class BatchRecords(NamedTuple):
    """``rows`` rows of ``length``, a global batch or a host's share of one: each sample's row among them, its folder and its
    number there, i64[n], by row."""

    length: int
    rows: int
    row: np.ndarray
    folder: np.ndarray
    record: np.ndarray


class BucketStats(NamedTuple):
    """A bucket in one epoch: ``steps`` batches of ``rows`` rows of ``length``; ``samples`` records with ``tokens`` positions."""

    length: int
    rows: int
    steps: int
    samples: int
    tokens: int

    @property
    def padding(self) -> float:
        """The share of positions without a token; rows that repeat to fill the last batch count as padding."""
        return 1 - self.tokens / (self.steps * self.rows * self.length)


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


class EpochRows(NamedTuple):
    """The rows of an epoch before they are permuted, numbered bucket by bucket and pattern by pattern.

    ``buckets`` and ``patterns`` are their ranges of rows. ``slots`` are the lengths of each pattern, one after another; the
    rows of a slot's pattern take the records ``first_record[slot]``, ``first_record[slot] + 1``, ... in the order of lengths.
    """

    buckets: Ranges
    patterns: Ranges
    slots: Ranges
    first_record: np.ndarray

    @classmethod
    def of(cls, patterns: Sequence[Pattern], bucket_count: int) -> "EpochRows":
        """``patterns`` are sorted by bucket."""
        rows = np.array([pattern.rows for pattern in patterns])
        slots = Ranges.of([len(pattern.lengths) for pattern in patterns])
        length = np.array([length for pattern in patterns for length in pattern.lengths])
        slot_rows = np.repeat(rows, slots.sizes)
        # Slots sorted by length take records one after another, so those of a length take exactly its records.
        order = np.argsort(length, kind="stable")
        first_record = np.empty_like(length)
        first_record[order] = Ranges.of(slot_rows[order]).starts
        buckets = np.bincount([pattern.bucket for pattern in patterns], rows, bucket_count)
        return cls(Ranges.of(buckets), Ranges.of(rows), slots, first_record)


class BatchPlan:
    """The global batches of every step, the same on every host; the state of the order is the step alone.

    ``tokens`` i32[N] of each folder of ``cfg`` are the records' numbers of tokens (a sample of n takes n - 1 positions). An
    epoch of ``steps`` steps holds every record once, or as often as its folder's weight demands (:func:`quotas`), and cuts
    none. The last batch of the longest bucket in use is filled with rows that then come twice in the epoch, fewer than a batch
    of them. A folder's records of one length all come once, in random order, before any comes again; which records share a
    row changes with every epoch.

    Raises InputError when there is no record, or when some are longer than the largest bucket.
    """

    def __init__(self, tokens: Sequence[np.ndarray], cfg: DataConfig, seed: int):
        self.cfg, self.seed = cfg, seed
        self._index = LengthIndex(tokens, cfg.buckets[-1])
        quota = quotas(self._index.counts, cfg.weights, cfg.mix_by)
        patterns = pack(quota.sum(0), cfg.buckets, cfg.packing)
        patterns = sorted(whole_batches(patterns, cfg.buckets, cfg.rows, cfg.packing), key=lambda p: p.bucket)
        self._quota = Ranges.of(quota.T.ravel())
        self._rows = EpochRows.of(patterns, len(cfg.buckets))
        rows = np.array([cfg.rows(length) for length in cfg.buckets])
        self._batches = Ranges.of(-(-self._rows.buckets.sizes // rows))
        stats = (self._bucket_stats(bucket, patterns) for bucket in range(len(cfg.buckets)))
        self.buckets = tuple(bucket for bucket in stats if bucket.steps)
        """The buckets in use, shortest first."""

    def _bucket_stats(self, bucket: int, patterns: list[Pattern]) -> BucketStats:
        patterns = [pattern for pattern in patterns if pattern.bucket == bucket]
        length = self.cfg.buckets[bucket]
        samples, tokens = (sum(p.rows * measure(p.lengths) for p in patterns) for measure in (len, sum))
        return BucketStats(length, self.cfg.rows(length), int(self._batches.sizes[bucket]), samples, tokens)

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return self._batches.total

    @property
    def padding(self) -> float:
        """The share of an epoch's positions without a token; rows that come twice count as padding."""
        return 1 - sum(b.tokens for b in self.buckets) / sum(b.steps * b.rows * b.length for b in self.buckets)

    def __call__(self, step: int, host: int = 0, hosts: int = 1) -> BatchRecords:
        """The rows of ``host`` in the global batch of ``step``, counted from 0: those from host*B/hosts on, of B.

        Only these rows are computed, so that a step costs every host the same, however many there are.
        """
        epoch, index = divmod(step, self.steps)
        batch = shuffled(np.array([index]), self.steps, key_of(self.seed, BATCHES, epoch))
        bucket, nth = (int(number[0]) for number in self._batches.locate(batch))
        length = self.cfg.buckets[bucket]
        rows = self.cfg.rows(length)
        share = rows // hosts
        pattern, pattern_row = self._batch_rows(epoch, bucket, nth * rows, host * share, share)
        counts = Ranges.of(self._rows.slots.sizes[pattern])
        row, nth_slot = counts.locate(np.arange(counts.total))
        slot = self._rows.slots.starts[pattern][row] + nth_slot
        return BatchRecords(length, share, row, *self._records(epoch, self._rows.first_record[slot] + pattern_row[row]))

    def _batch_rows(self, epoch: int, bucket: int, begin: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` permuted rows from the ``first`` on of the batch that begins with row ``begin`` of ``bucket``.

        Pattern and number among its rows, i64[count] each.
        """
        buckets = self._rows.buckets
        begin += int(buckets.starts[bucket])
        row = np.arange(begin + first, begin + first + count)
        # The last batch of all is filled up with the rows before it, backwards.
        row = np.where(row < buckets.total, row, (begin - 1 - (row - buckets.total)) % buckets.total)
        home, offset = buckets.locate(row)
        key = key_of(self.seed, ROWS, epoch, home)
        return self._rows.patterns.locate(buckets.starts[home] + shuffled(offset, buckets.sizes[home], key))

    def _records(self, epoch: int, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Folder and number there, in ``epoch``, of each record ``number`` i64[n] in the order of lengths; i64[n] each."""
        kind, offset = self._quota.locate(number)
        draw = epoch * self._quota.sizes[kind] + offset
        size = self._index.kinds.sizes[kind]
        lap, nth = np.divmod(draw, size)
        return self._index.find(kind, shuffled(nth, size, key_of(self.seed, RECORDS, kind, lap)))


class LengthIndex:
    """The records of F folders sorted by kind, which is (length, folder). Memory: four bytes a record.

    ``tokens`` are i32[N] of each folder, memory-mapped or not; a sample of n tokens has length n - 1. ``counts``
    i64[F limit+1] are the records of each folder and length, ``kinds`` the (limit+1) * F ranges of the sorted records.

    Raises InputError when there is no record, or when some are longer than ``limit`` or have nothing to predict.
    """

    def __init__(self, tokens: Sequence[np.ndarray], limit: int):
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

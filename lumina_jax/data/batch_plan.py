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

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from lumina_jax.config import DataConfig
from lumina_jax.data.length_index import LengthIndex, Ranges, quotas
from lumina_jax.data.packing import Pattern, pack, whole_batches
from lumina_jax.data.permutation import key_of, shuffled

BATCHES, ROWS, RECORDS = range(3)
"""What a permutation is of: a part of its key."""
CHUNK = 2**20
"""Rows that are planned at once."""


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


class RecordOrder(Protocol):
    """Which record a draw is. A kind of records is (length, folder), numbered length * folders + folder; its draws count from 0."""

    def find(self, kind: np.ndarray, draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(folder, number in it) of each ``draw`` i64[n] of a ``kind`` i64[n], i64[n] each."""


class LapOrder:
    """The records of each kind all come once, in random order, before any of them comes again."""

    def __init__(self, index: LengthIndex, seed: int):
        self._index, self._seed = index, seed

    def find(self, kind: np.ndarray, draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`RecordOrder.find`."""
        size = self._index.kinds.sizes[kind]
        lap, nth = np.divmod(draw, size)
        return self._index.find(kind, shuffled(nth, size, key_of(self._seed, RECORDS, kind, lap)))


class Draws(NamedTuple):
    """Draws of each kind, by kind: those of kind k are ``numbers[i]`` for i in range k of ``kinds``."""

    kinds: Ranges
    numbers: np.ndarray


class BatchPlan:
    """The global batches of every step, the same on every host; the state of the order is the step alone.

    ``tokens`` i32[N] of each folder of ``cfg`` are the records' numbers of tokens (a sample of n takes n - 1 positions). An
    epoch of ``steps`` steps holds every record once, or as often as its folder's weight demands (:func:`quotas`), and cuts
    none. The last batch of the longest bucket in use is filled with rows that then come twice in the epoch, fewer than a batch
    of them. A folder's records of one length all come once, in random order, before any comes again; which records share a
    row changes with every epoch.

    ``index`` is the LengthIndex of ``tokens``, where there is one already; ``order`` another than :class:`LapOrder`. With ``rest``
    the plan is of one epoch, number ``epoch``, that takes those draws alone.

    Raises InputError when there is no record, or when some are longer than the largest bucket.
    """

    def __init__(
        self,
        tokens: Sequence[np.ndarray],
        cfg: DataConfig,
        seed: int,
        index: LengthIndex | None = None,
        order: RecordOrder | None = None,
        rest: Draws | None = None,
        epoch: int = 0,
    ):
        self.cfg, self.seed = cfg, seed
        self.index = index or LengthIndex(tokens, cfg.buckets[-1])
        self.order = order or LapOrder(self.index, seed)
        self._rest, self._epoch = rest, epoch
        counts = self.index.counts
        quota = quotas(counts, cfg.weights, cfg.mix_by) if rest is None else rest.kinds.sizes.reshape(counts.T.shape).T
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

    @property
    def quota(self) -> np.ndarray:
        """How many records an epoch takes of each kind, i64[kinds]."""
        return self._quota.sizes

    def __call__(self, step: int, host: int = 0, hosts: int = 1) -> BatchRecords:
        """The rows of ``host`` in the global batch of ``step``, counted from 0: those from host*B/hosts on, of B.

        Only these rows are computed, so that a step costs every host the same, however many there are.
        """
        epoch, index = self._place(step)
        batch = shuffled(np.array([index]), self.steps, key_of(self.seed, BATCHES, epoch))
        bucket, nth = (int(number[0]) for number in self._batches.locate(batch))
        length = self.cfg.buckets[bucket]
        rows = self.cfg.rows(length)
        share = rows // hosts
        row, number = self._batch_records(epoch, bucket, nth * rows, share, host * share)
        kind, draw = self._draws(epoch, number)
        return BatchRecords(length, share, row, *self.order.find(kind, draw))

    def left(self, step: int) -> tuple[int, Draws]:
        """(epoch, the draws of it that the batches before ``step`` leave). Takes a microsecond for each record before."""
        epoch, index = self._place(step)
        taken = np.zeros(self._quota.total, bool)
        done = shuffled(np.arange(index), self.steps, key_of(self.seed, BATCHES, epoch))
        bucket, nth = self._batches.locate(done)
        for number in range(len(self.cfg.buckets)):
            rows = self.cfg.rows(self.cfg.buckets[number])
            begins = nth[bucket == number] * rows
            for some in np.array_split(begins, max(1, len(begins) * rows // CHUNK)):
                taken[self._batch_records(epoch, number, some, rows)[1]] = True
        kind, draw = self._draws(epoch, np.flatnonzero(~taken))
        return epoch, Draws(Ranges.of(np.bincount(kind, minlength=len(self._quota.sizes))), draw)

    def _place(self, step: int) -> tuple[int, int]:
        """(epoch, steps of it that were done before ``step``)."""
        return divmod(step, self.steps) if self._rest is None else (self._epoch, step)

    def _batch_records(
        self, epoch: int, bucket: int, begins: int | np.ndarray, count: int, first: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The records in ``count`` permuted rows, from the ``first`` on, of the batches that begin at the rows ``begins`` of
        ``bucket``: row, counted through all of these, and number in the order of lengths, i64[n] each."""
        pattern, pattern_row = self._permuted_rows(epoch, bucket, np.atleast_1d(begins), count, first)
        counts = Ranges.of(self._rows.slots.sizes[pattern])
        row, nth_slot = counts.locate(np.arange(counts.total))
        slot = self._rows.slots.starts[pattern][row] + nth_slot
        return row, self._rows.first_record[slot] + pattern_row[row]

    def _permuted_rows(
        self, epoch: int, bucket: int, begins: np.ndarray, count: int, first: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The permuted rows of :meth:`_batch_records`: pattern and number among its rows, i64[n] each."""
        buckets = self._rows.buckets
        begin = np.repeat(begins + int(buckets.starts[bucket]), count)
        row = begin + np.tile(np.arange(first, first + count), len(begins))
        # The last batch of all is filled up with the rows before it, backwards.
        row = np.where(row < buckets.total, row, (begin - 1 - (row - buckets.total)) % buckets.total)
        home, offset = buckets.locate(row)
        key = key_of(self.seed, ROWS, epoch, home)
        return self._rows.patterns.locate(buckets.starts[home] + shuffled(offset, buckets.sizes[home], key))

    def _draws(self, epoch: int, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Kind, and draw of it in ``epoch``, of each record ``number`` i64[n] in the order of lengths; i64[n] each."""
        kind, offset = self._quota.locate(number)
        if self._rest is None:
            return kind, epoch * self._quota.sizes[kind] + offset
        return kind, self._rest.numbers[self._rest.kinds.starts[kind] + offset]

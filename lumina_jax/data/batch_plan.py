"""Which records make up which batch, row and place: a pure function of (seed, step) and the records' lengths.

Decided once, on how many records there are of each length: the *patterns*, which lengths share how many rows of which bucket
(packing.py). Computed when a step is asked for: which of the epoch's batches it is, which rows that batch has, and which
record stands for each length in them. Each of the three is a random order without memory (order.py), another each epoch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lumina_jax.config import DataConfig
from lumina_jax.data.index import LengthIndex
from lumina_jax.data.mixture import quotas
from lumina_jax.data.packing import Pattern, pack, whole_batches
from lumina_jax.data.permutation import key_of, shuffled

BATCHES, ROWS, RECORDS = range(3)
"""What a random order is of."""


class Places(NamedTuple):
    """The samples of a global batch of ``rows`` rows of ``length``: row, folder and number in it, i64[n] each, row by row."""

    length: int
    rows: int
    row: np.ndarray
    folder: np.ndarray
    record: np.ndarray


class Shape(NamedTuple):
    """A bucket in an epoch: ``steps`` batches of ``rows`` rows of ``length``, of which ``samples`` fill ``tokens`` places."""

    length: int
    rows: int
    steps: int
    samples: int
    tokens: int

    @property
    def padding(self) -> float:
        """The share of places without a token of the epoch's; those that hold a row a second time count as empty."""
        return 1 - self.tokens / (self.steps * self.rows * self.length)


class BucketPlan:
    """Global batches of one length each, the same on every host; the state of the order is the step alone.

    ``tokens`` i32[N] of each folder of ``cfg`` say how many each record has (a sample of n takes n - 1 positions). An epoch
    holds every record once, or as often as its folder's weight wants (mixture.py), cuts none, and takes ``steps`` steps. Its
    last batch of the longest bucket in use is filled up with rows of the epoch that then come twice, fewer than a batch of
    them. Each folder goes through its records of a length, in a new order each time, before one comes again; who shares a row
    with whom changes with every epoch.

    Raises ValueError when there is no record, or when some are longer than the largest bucket.
    """

    def __init__(self, tokens: Sequence[np.ndarray], cfg: DataConfig, seed: int):
        self.cfg, self.seed = cfg, seed
        self._index = LengthIndex(tokens, cfg.buckets[-1])
        quota = quotas(self._index.counts, cfg.weights, cfg.mix_by)
        patterns = pack(quota.sum(0), cfg.buckets, cfg.packing)
        patterns = sorted(whole_batches(patterns, cfg.buckets, cfg.rows, cfg.packing), key=lambda p: p.bucket)
        self._quota = quota.T.ravel()
        self._quota_ends = np.cumsum(self._quota)
        self._lay_out(patterns)
        self._used = np.flatnonzero(self._bucket_rows)
        self.shapes = tuple(self._shape(number, patterns) for number in self._used)
        """The buckets in use, shortest first."""
        self._batch_ends = np.cumsum([shape.steps for shape in self.shapes])

    def _lay_out(self, patterns: list[Pattern]) -> None:
        """Rows numbered through all buckets, pattern by pattern, and for each place of a pattern its records' numbers.

        Records are numbered by length: place s of a pattern has those from ``_place_first[s]`` on, one for each row.
        """
        rows = np.array([pattern.rows for pattern in patterns])
        buckets = np.array([pattern.bucket for pattern in patterns])
        self._bucket_rows = np.bincount(buckets, rows, len(self.cfg.buckets)).astype(np.int64)
        self._bucket_ends = np.cumsum(self._bucket_rows)
        self._pattern_ends = np.cumsum(rows)
        self._pattern_first = self._pattern_ends - rows
        self._pattern_places = np.array([len(pattern.lengths) for pattern in patterns])
        self._pattern_place = np.cumsum(self._pattern_places) - self._pattern_places
        length = np.array([length for pattern in patterns for length in pattern.lengths])
        times = np.repeat(rows, self._pattern_places)
        order = np.argsort(length, kind="stable")
        # Places sorted by length take their records one behind another, and so fill each length's numbers exactly.
        self._place_first = np.empty_like(length)
        self._place_first[order] = np.cumsum(times[order]) - times[order]

    def _shape(self, number: int, patterns: list[Pattern]) -> Shape:
        mine = [pattern for pattern in patterns if pattern.bucket == number]
        length = self.cfg.buckets[number]
        rows = self.cfg.rows(length)
        samples, tokens = (sum(p.rows * of(p.lengths) for p in mine) for of in (len, sum))
        return Shape(length, rows, -(-int(self._bucket_rows[number]) // rows), samples, tokens)

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return int(self._batch_ends[-1])

    @property
    def padding(self) -> float:
        """The share of an epoch's places that hold no token of its records."""
        return 1 - sum(s.tokens for s in self.shapes) / sum(s.steps * s.rows * s.length for s in self.shapes)

    def __call__(self, step: int) -> Places:
        """What the global batch of ``step``, counted from 0, holds."""
        epoch, place = divmod(step, self.steps)
        batch = int(shuffled(np.array([place]), self.steps, key_of(self.seed, BATCHES, epoch))[0])
        used = int(np.searchsorted(self._batch_ends, batch, "right"))
        shape = self.shapes[used]
        nth = batch - int(self._batch_ends[used]) + shape.steps
        pattern, instance = self._rows(epoch, int(self._used[used]), nth, shape.rows)
        many = self._pattern_places[pattern]
        row = np.repeat(np.arange(shape.rows), many)
        first = self._pattern_place[pattern] - np.cumsum(many) + many
        record = self._place_first[np.arange(len(row)) + first[row]] + instance[row]
        return Places(shape.length, shape.rows, row, *self._records(epoch, record))

    def _rows(self, epoch: int, bucket: int, nth: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The pattern of each row of the ``nth`` batch of ``bucket``, and which of the pattern's rows it is, i64[rows] each."""
        total = int(self._bucket_ends[-1])
        begin = int(self._bucket_ends[bucket] - self._bucket_rows[bucket]) + nth * rows
        at = np.arange(begin, begin + rows)
        # Beyond the last row stand those before this batch, backwards.
        at = np.where(at < total, at, (begin - 1 - (at - total)) % total)
        home = np.searchsorted(self._bucket_ends, at, "right")
        held, first = self._bucket_rows[home], self._bucket_ends[home] - self._bucket_rows[home]
        at = first + shuffled(at - first, held, key_of(self.seed, ROWS, epoch, home))
        pattern = np.searchsorted(self._pattern_ends, at, "right")
        return pattern, at - self._pattern_first[pattern]

    def _records(self, epoch: int, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Folder and record that stand in ``epoch`` for each ``number`` of a record by length."""
        kind = np.searchsorted(self._quota_ends, number, "right")
        drawn = epoch * self._quota[kind] + number - (self._quota_ends[kind] - self._quota[kind])
        held = self._index.kinds[kind]
        lap, nth = np.divmod(drawn, held)
        return self._index.find(kind, shuffled(nth, held, key_of(self.seed, RECORDS, kind, lap)))

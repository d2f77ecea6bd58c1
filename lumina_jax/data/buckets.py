"""Which records make up which batch: token-length buckets as a pure function of (seed, step)."""

import functools
from collections.abc import Sequence

import numpy as np


class BucketPlan:
    """Global batches of records of like length, the same on every host; the state of the order is the step alone.

    ``lengths`` i[N] are the positions each record takes (a sample of n tokens takes n - 1), ``buckets`` the lengths that
    batches are padded to, in rising order. An epoch is ceil(N / batch) steps and works like this:

    * the records of each bucket are shuffled and cut into batches; those that do not fill one move up to the next bucket;
    * what is left over at the end makes one more batch: it has the smallest bucket that holds its records and others
      enough, and is filled up with others that fit, drawn anew each epoch. Fewer records than ``batch`` in all are
      repeated in turn until they fill it;
    * the batches are shuffled.

    So each epoch holds every record, and fewer than ``batch`` places hold one a second time. Memory: one byte per record,
    and the order of the two epochs last asked for.

    Raises ValueError when there is no record, or when some are longer than the largest bucket.
    """

    def __init__(self, lengths: np.ndarray, buckets: Sequence[int], batch: int, seed: int):
        self.buckets, self.batch, self.seed = tuple(buckets), batch, seed
        if len(lengths) == 0:
            raise ValueError("there are no records to make batches of")
        too_long = int(np.count_nonzero(lengths > self.buckets[-1]))
        if too_long:
            raise ValueError(
                f"{too_long} of {len(lengths)} records are longer than the largest bucket, {self.buckets[-1]}: the longest "
                f"takes {lengths.max()} positions; raise data.buckets or pretokenize at a smaller size"
            )
        self._bucket = np.searchsorted(self.buckets, lengths).astype(np.uint8)
        self._epoch = functools.lru_cache(2)(self._make_epoch)

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return -(-len(self._bucket) // self.batch)

    def __call__(self, step: int) -> tuple[int, np.ndarray]:
        """The bucket length and the record ids i64[batch] of the global batch of ``step``."""
        epoch, place = divmod(step, self.steps)
        buckets, ids = self._epoch(epoch)
        return self.buckets[buckets[place]], ids[place].astype(np.int64)

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The bucket of each batch u8[steps] and its records u32[steps batch]."""
        rng = np.random.default_rng([self.seed, epoch])
        ids = np.empty((self.steps, self.batch), np.uint32)
        buckets = np.empty(self.steps, np.uint8)
        done, waiting = 0, np.empty(0, np.uint32)
        for bucket in range(len(self.buckets)):
            members = np.flatnonzero(self._bucket == bucket).astype(np.uint32)
            waiting = rng.permutation(np.concatenate([waiting, members]))
            full = len(waiting) // self.batch
            rows, waiting = np.split(waiting, [full * self.batch])
            ids[done : done + full], buckets[done : done + full] = rows.reshape(full, self.batch), bucket
            done += full
        if len(waiting):
            buckets[done], ids[done] = self._fill(waiting, rng)
        order = rng.permutation(self.steps)
        return buckets[order], ids[order]

    def _fill(self, own: np.ndarray, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        """The bucket and the records of a batch of ``own`` and as many others as it needs."""
        up_to = np.cumsum(np.bincount(self._bucket, minlength=len(self.buckets)))
        enough = int(np.argmax(up_to >= min(self.batch, len(self._bucket))))
        bucket = max(enough, int(self._bucket[own].max()))
        fits = self._bucket <= bucket
        fits[own] = False
        others = np.flatnonzero(fits)
        others = rng.choice(others, min(self.batch - len(own), len(others)), replace=False)
        return bucket, np.resize(np.concatenate([own, others]), self.batch)

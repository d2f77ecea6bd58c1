"""Shards -> Batches: the host's rows of each global batch, read ahead by grain."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np

from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig
from lumina_jax.conversation import drop_context
from lumina_jax.data.buckets import BucketPlan
from lumina_jax.data.shards import Shards
from lumina_jax.vocab import Vocab

DROP_STREAM = 1


def batches(
    path: str | Path,
    cfg: DataConfig,
    vocab: Vocab,
    seed: int,
    start: int = 0,
    stop: int | None = None,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Batch]:
    """The batches of the steps from ``start`` to ``stop`` (None: without end), the rows of one host, as numpy arrays.

    The global batch of a step is a pure function of (seed, step) and the folder ``path``: stopping and starting at any
    step, on any number of hosts, continues the same order. Host h of H has rows h*B/H to (h+1)*B/H of the B = cfg.batch.

    Raises ValueError when B is not a multiple of ``hosts``, when the folder was made with another tokenizer, or when a
    sample is longer than the largest bucket; FileNotFoundError when ``path`` is no finished pretokenize folder.
    """
    if cfg.batch % hosts or not 0 <= host < hosts:
        raise ValueError(
            f"data.batch={cfg.batch} cannot be shared by {hosts} hosts (this is host {host}); make it a multiple of {hosts}"
        )
    shards = Shards(path)
    made_with = shards.manifest.settings.tokenizer
    if made_with != vocab.fingerprint:
        raise ValueError(
            f"{path} was made with the tokenizer {made_with}, but {vocab.source} is {vocab.fingerprint}; "
            "set data.tokenizer to the one it was made with, or pretokenize again"
        )
    plan = BucketPlan(shards.lengths - 1, cfg.buckets, cfg.batch, seed)
    share = cfg.batch // hosts
    source = _BatchSource(shards, plan, vocab, cfg.drop_context, range(host * share, (host + 1) * share))
    steps = grain.MapDataset.source(source)[start:stop]
    return iter(steps.to_iter_dataset(grain.ReadOptions(cfg.threads, 2 * cfg.threads)))


@dataclass(frozen=True)
class _BatchSource:
    """Step -> Batch, as grain's RandomAccessDataSource; ``rows`` are this host's rows of the global batch."""

    shards: Shards
    plan: BucketPlan
    vocab: Vocab
    drop: float
    rows: range

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> Batch:
        length, ids = self.plan(step)
        samples = self.shards.__getitems__([int(ids[row]) for row in self.rows])
        # One draw for each row of the global batch: the same for any number of hosts.
        draws = np.random.default_rng([self.plan.seed, step, DROP_STREAM]).random(self.plan.batch)[self.rows]
        dropped = [
            drop_context(*sample, self.vocab) if draw < self.drop else sample
            for sample, draw in zip(samples, draws, strict=True)
        ]
        return pad(dropped, length)


def pad(samples: list[tuple[np.ndarray, np.ndarray]], length: int) -> Batch:
    """Samples (tokens i32[n], learn bool[n]) with n - 1 <= ``length`` -> a Batch [B length], one sample per row, shifted by one."""
    shape = (len(samples), length)
    batch = Batch(*(np.zeros(shape, dtype) for dtype in (np.int32, np.int32, bool, np.int32, np.int32)))
    for row, (tokens, learn) in enumerate(samples):
        n = len(tokens) - 1
        batch.inputs[row, :n], batch.targets[row, :n], batch.learn[row, :n] = tokens[:-1], tokens[1:], learn[1:]
        batch.positions[row, :n], batch.segments[row, :n] = np.arange(n), 1
    return batch

"""Shards -> Batches: the host's rows of each global batch, read ahead by grain."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grain
import numpy as np

from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig
from lumina_jax.conversation import drop_context
from lumina_jax.data.batch_plan import BucketPlan, Places
from lumina_jax.data.shards import Shards, check_made_with
from lumina_jax.errors import InputError
from lumina_jax.vocab import Vocab

DROP_STREAM = 1
Sample = tuple[np.ndarray, np.ndarray]
"""Tokens i32[n] and learn bool[n]."""


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

    The global batch of a step is a pure function of (seed, step) and the folders of ``path``, one or several with commas
    between: stopping and starting at any step, on any number of hosts, continues the same order. Host h of H has rows h*B/H
    to (h+1)*B/H of the B = cfg.rows(length) of a batch.

    Raises ValueError when some B is not a multiple of ``hosts``, when a folder was made with another tokenizer or with another
    VQ model than the first, or when a sample is longer than the largest bucket; FileNotFoundError when a folder is no
    finished one of pretokenize.
    """
    cfg = replace(cfg, path=str(path))
    _check_hosts(cfg, host, hosts)
    shards = open_shards(cfg, vocab)
    plan = BucketPlan([part.lengths for part in shards], cfg, seed)
    steps = grain.MapDataset.source(_BatchSource(shards, plan, vocab, host, hosts))[start:stop]
    return iter(steps.to_iter_dataset(grain.ReadOptions(cfg.threads, 2 * cfg.threads)))


def open_shards(cfg: DataConfig, vocab: Vocab) -> list[Shards]:
    """The folders of ``cfg``, once it is sure that their tokens mean what ``vocab`` says, and their pictures the same."""
    shards = [Shards(path) for path in cfg.paths]
    for path, part in zip(cfg.paths, shards, strict=True):
        check_made_with(part.manifest, vocab, where=path)
    pictured = [
        (path, part.manifest.settings.vq) for path, part in zip(cfg.paths, shards, strict=True) if part.manifest.crops
    ]
    for path, vq in pictured:
        if vq != pictured[0][1]:
            raise InputError(
                f"{path} was made with the VQ model {vq}, but {pictured[0][0]} with {pictured[0][1]}; "
                "pretokenize one of them again"
            )
    return shards


def _check_hosts(cfg: DataConfig, host: int, hosts: int) -> None:
    for length in cfg.buckets:
        rows = cfg.rows(length)
        if rows % hosts or not 0 <= host < hosts:
            raise InputError(
                f"data.batch={cfg.batch} makes batches of {rows} rows of {length}, which cannot be shared by {hosts} hosts "
                f"(this is host {host}); make data.batch and data.row_multiple a multiple of {hosts}"
            )


@dataclass(frozen=True)
class _BatchSource:
    """Step -> Batch, the rows of ``host`` of ``hosts``, as grain's RandomAccessDataSource."""

    shards: list[Shards]
    plan: BucketPlan
    vocab: Vocab
    host: int
    hosts: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> Batch:
        places = self.plan(step)
        share = places.rows // self.hosts
        begin, end = np.searchsorted(places.row, [self.host * share, (self.host + 1) * share])
        # One draw for each sample of the global batch: the same for any number of hosts.
        draws = np.random.default_rng([self.plan.seed, step, DROP_STREAM]).random(len(places.row))[begin:end]
        samples = [
            drop_context(*sample, self.vocab) if draw < self.plan.cfg.drop_context else sample
            for sample, draw in zip(self._read(places, slice(begin, end)), draws, strict=True)
        ]
        return lay_out(samples, places.row[begin:end] - self.host * share, (share, places.length))

    def _read(self, places: Places, mine: slice) -> list[Sample]:
        folders, records = places.folder[mine], places.record[mine]
        order = np.argsort(folders, kind="stable")
        samples: list[Sample] = []
        for folder, shards in enumerate(self.shards):
            samples += shards.__getitems__(records[order[folders[order] == folder]].tolist())
        back = np.argsort(order, kind="stable")
        return [samples[place] for place in back]


def lay_out(samples: Sequence[Sample], row: Sequence[int], shape: tuple[int, int]) -> Batch:
    """Samples (tokens i32[n], learn bool[n]), shifted by one, into the rows ``row`` of a Batch of ``shape`` [B T].

    Those of a row, which follow each other, must fit: each takes n - 1 positions.
    """
    batch = Batch(*(np.zeros(shape, dtype) for dtype in (np.int32, np.int32, bool, np.int32, np.int32)))
    end, segment = np.zeros(shape[0], int), np.zeros(shape[0], int)
    count = np.arange(shape[1], dtype=np.int32)
    for (tokens, learn), at in zip(samples, row, strict=True):
        size = len(tokens) - 1
        place = slice(end[at], end[at] + size)
        end[at], segment[at] = place.stop, segment[at] + 1
        batch.inputs[at, place], batch.targets[at, place], batch.learn[at, place] = tokens[:-1], tokens[1:], learn[1:]
        batch.positions[at, place], batch.segments[at, place] = count[:size], segment[at]
    return batch

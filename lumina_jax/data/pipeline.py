"""Shards -> Batches: this host's rows of each global batch, prefetched by grain."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import grain
import numpy as np

from lumina_jax.batch import DTYPES, Batch
from lumina_jax.config import DataConfig
from lumina_jax.conversation import drop_context
from lumina_jax.data.order import DataOrder
from lumina_jax.data.permutation import key_of
from lumina_jax.data.shards import Shards, check_made_with
from lumina_jax.data.token_files import StoreReading
from lumina_jax.errors import InputError
from lumina_jax.faults import retried
from lumina_jax.history import BatchSpan, DataStage, Folders
from lumina_jax.vocab import Vocab

DROP_STREAM = 1
"""Tells the draws for :func:`drop_context` from all others of the seed and step."""


def batches(
    path: str | Path,
    cfg: DataConfig,
    vocab: Vocab,
    seed: int,
    start: int = 0,
    stop: int | None = None,
    host: int = 0,
    hosts: int = 1,
    stages: Sequence[DataStage] = (),
) -> Iterator[Batch]:
    """The batches of the steps from ``start`` to ``stop`` (None: without end), one host's rows of each, as numpy arrays.

    The global batch of a step is a pure function of (seed, step) and the folders of ``path`` (one, or several with commas
    between): stopping and resuming at any step, on any number of hosts, continues the same order. Host h of H has rows h*B/H
    to (h+1)*B/H of a batch of B = cfg.rows(length). A run whose settings of data changed has ``stages``, the last one ``cfg``.

    Raises InputError when some B is not a multiple of ``hosts``, when the folders were made with other tokenizers than
    ``vocab`` or with several VQ models, or when a sample is longer than the largest bucket; MissingFileError when a folder was
    not written, or not finished, by pretokenize.
    """
    cfg = replace(cfg, path=str(path))
    _check_hosts(cfg, host, hosts)
    shards = open_shards(cfg, vocab)
    source = _BatchSource(shards, data_order(cfg, shards, seed, stages), vocab, host, hosts)
    steps = grain.MapDataset.source(source)[start:stop]
    return iter(steps.to_iter_dataset(grain.ReadOptions(cfg.threads, 2 * cfg.threads)))


def data_order(cfg: DataConfig, shards: Sequence[Shards], seed: int, stages: Sequence[DataStage] = ()) -> DataOrder:
    """The order of the records of ``shards``, the folders of ``cfg``, in a run of ``stages``.

    Folders that only earlier stages had are opened for their lengths; MissingFileError where they are gone.
    """
    fingerprints = fingerprints_of(shards)
    *earlier, now = stages or (DataStage(0, cfg, fingerprints),)
    by_fingerprint = dict(zip(fingerprints, shards, strict=True))

    opened = partial(Shards, reading=StoreReading.of(cfg), check=False)

    def lengths_of(stage: DataStage) -> list[np.ndarray]:
        if len(stage.folders) != len(stage.cfg.paths):
            return [folder.lengths for folder in shards]
        pairs = zip(stage.folders, stage.cfg.paths, strict=True)
        return [(by_fingerprint[name] if name in by_fingerprint else opened(path)).lengths for name, path in pairs]

    return DataOrder([*earlier, now._replace(cfg=cfg)], lengths_of, seed)


def fingerprints_of(shards: Sequence[Shards]) -> Folders:
    """The fingerprint of each folder's content: another for other records or another order of them, wherever the folder lies."""
    return tuple(folder.manifest.fingerprint for folder in shards)


def record_names(cfg: DataConfig, seed: int, span: BatchSpan) -> list[str]:
    """The records of the batches of ``span``, as FOLDER:NUMBER, each once, in the order of their rows."""
    shards = [Shards(path, reading=StoreReading.of(cfg), check=False) for path in cfg.paths]
    order, names = data_order(cfg, shards, seed, span.stages), []
    for number in range(span.start, span.stop):
        batch = order(number)
        folders = (cfg.paths[folder] for folder in batch.folder.tolist())
        names += [f"{path}:{record}" for path, record in zip(folders, batch.record.tolist(), strict=True)]
    return list(dict.fromkeys(names))


def open_shards(cfg: DataConfig, vocab: Vocab, check: bool = False) -> list[Shards]:
    """The folders of ``cfg``, checked to be made with ``vocab`` and, where they hold images, with one VQ model.

    With ``check`` it is also seen that all files are in their store, which need not be done on every host.
    """
    reading = StoreReading.of(cfg)
    shards, first_path = [Shards(path, reading=reading, check=check) for path in cfg.paths], {}
    for path, folder in zip(cfg.paths, shards, strict=True):
        check_made_with(folder.manifest, vocab, where=path)
        if folder.manifest.crops:
            first_path.setdefault(folder.manifest.settings.vq, path)
    if len(first_path) > 1:
        (vq, path), (other_vq, other_path), *_ = first_path.items()
        made_with = f"{other_path} was made with the VQ model {other_vq}, but {path} with {vq}"
        raise InputError(f"{made_with}; pretokenize one of them again")
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
    plan: DataOrder
    vocab: Vocab
    host: int
    hosts: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> Batch:
        records = self.plan(step, self.host, self.hosts)
        draws = drop_draws(self.plan.seed, step, records.row + self.host * records.rows)
        samples = [
            drop_context(*sample, self.vocab) if draw < self.plan.cfg.drop_context else sample
            for sample, draw in zip(self._samples(records.folder, records.record), draws, strict=True)
        ]
        return collate(samples, records.row, (records.rows, records.length))

    def _samples(self, folder: np.ndarray, record: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """The samples of the records ``record`` i64[n] of the folders ``folder`` i64[n]; those of a folder are read together."""
        samples = {}
        for number in np.unique(folder).tolist():
            shards, places = self.shards[number], np.flatnonzero(folder == number).tolist()
            chosen = record[places].tolist()
            read = partial(shards.read, chosen)
            what = f"reading {len(chosen)} records of {shards.path}, such as {chosen[0]}"
            samples |= zip(places, retried(read, what), strict=True)
        return [samples[place] for place in range(len(folder))]


def drop_draws(seed: int, step: int, row: np.ndarray) -> np.ndarray:
    """A number f64[n] in [0, 1) for each sample of a batch, of which sample i stands in the global ``row[i]``, ascending.

    It depends on seed, step, row and place in the row alone: the same for any number of hosts, none of which draws for others.
    """
    first = np.searchsorted(row, row)
    return (key_of(seed, DROP_STREAM, step, row, np.arange(len(row)) - first) >> np.uint64(11)) / 2.0**53


def collate(samples: Sequence[tuple[np.ndarray, np.ndarray]], rows: Sequence[int], shape: tuple[int, int]) -> Batch:
    """Samples (tokens i32[n], learn bool[n]) -> a Batch of ``shape`` [B T]; sample i stands in row ``rows[i]``.

    Inputs and targets are the tokens shifted by one, so a sample takes n - 1 positions. Samples of a row stand one after
    another, and must fit.
    """
    batch = Batch(*(np.zeros(shape, dtype) for dtype in DTYPES))
    end, segment = np.zeros(shape[0], int), np.zeros(shape[0], int)
    count = np.arange(shape[1], dtype=np.int32)
    for (tokens, learn), row in zip(samples, rows, strict=True):
        size = len(tokens) - 1
        span = slice(end[row], end[row] + size)
        end[row], segment[row] = span.stop, segment[row] + 1
        batch.inputs[row, span], batch.targets[row, span], batch.learn[row, span] = tokens[:-1], tokens[1:], learn[1:]
        batch.positions[row, span], batch.segments[row, span] = count[:size], segment[row]
    return batch

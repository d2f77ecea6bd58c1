"""What is measured of a model while it trains: the loss on records that it is not trained on."""

from collections.abc import Iterator
from dataclasses import replace

import jax
from jax.sharding import Mesh

from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig, Experiment
from lumina_jax.data.batch_plan import BatchPlan
from lumina_jax.data.pipeline import batches, open_shards
from lumina_jax.sharding import data_share, global_batch
from lumina_jax.train.step import TrainState
from lumina_jax.train.watch import HELD_OUT, MeshLoss, Watcher
from lumina_jax.vocab import Vocab

SEED = 0
"""Of the order of held-out records: the first batches are the same in every run."""


def watchers(cfg: Experiment, vocab: Vocab, mesh: Mesh) -> list[Watcher]:
    """What ``cfg.watch`` asks for."""
    return [HeldOutLoss(cfg, vocab, mesh)] if cfg.watch.held_out_every else []


class HeldOutLoss:
    """The mean cross-entropy over the learned tokens of ``cfg.watch.held_out``, under the full context, on the mesh of the run.

    The batches have the shapes of the run's microbatches, so that there is one program for each row length, and memory enough. Rows
    that repeat to fill the last batch count again.

    Raises InputError and MissingFileError as :func:`lumina_jax.data.pipeline.batches`.
    """

    name = "measuring the held-out loss"

    def __init__(self, cfg: Experiment, vocab: Vocab, mesh: Mesh):
        self.every, self._vocab, self._mesh = cfg.watch.held_out_every, vocab, mesh
        self._cfg = held_out_data(cfg)
        self._share = data_share(mesh, jax.process_index())
        lengths = [folder.lengths for folder in open_shards(self._cfg, vocab)]
        epoch = BatchPlan(lengths, self._cfg, SEED).steps
        self._count = min(cfg.watch.held_out_batches or epoch, epoch)
        self._loss = MeshLoss(cfg, mesh)

    def measure(self, step: int, state: TrainState) -> dict[str, float]:
        """{"held_out": nats a token}."""
        return {HELD_OUT: self._loss(state.model, self._batches())}

    def _batches(self) -> Iterator[Batch]:
        rows = batches(self._cfg.path, self._cfg, self._vocab, SEED, 0, self._count, *self._share)
        return (global_batch(batch, self._mesh) for batch in rows)


def held_out_data(cfg: Experiment) -> DataConfig:
    """The settings of held-out batches: those of a microbatch of training, of other folders, without dropped contexts."""
    count = cfg.optim.accumulate
    rows = {name: getattr(cfg.data, name) // count for name in ("batch", "row_multiple")}
    return replace(cfg.data, path=cfg.watch.held_out, weights=(), drop_context=0.0, **rows)

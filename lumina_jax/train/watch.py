"""What may measure a model while it trains, and the held-out loss on the mesh of the run."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from PIL import Image

from lumina_jax.batch import Batch
from lumina_jax.config import Experiment
from lumina_jax.model.backend import DeviceJit
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sharding import STORE, constrain_weights
from lumina_jax.train.loss import LossSums, step_loss
from lumina_jax.train.step import TrainState

HELD_OUT = "held_out"
"""The name of the held-out loss in metrics.jsonl; the best checkpoints are kept by it."""


class Watcher(Protocol):
    """Measures the state of a run every ``every`` steps and at the end; ``name`` says what it does, for people who wait."""

    name: str
    every: int

    def measure(self, step: int, state: TrainState) -> dict[str, float]:
        """Numbers by name, for the line of ``step`` in metrics.jsonl. All processes call this together and get the same."""

    def images(self) -> Mapping[str, Image.Image]:
        """The pictures of the newest measure by name, for the loggers; process 0 has them."""


class MeshLoss:
    """The mean cross-entropy of a model on the mesh of its run, without dropout; one program for each shape of batch."""

    def __init__(self, cfg: Experiment, mesh: Mesh):
        self._mesh = mesh
        compute, options = jnp.dtype(cfg.mesh.compute), {}
        for name in ("unroll", "attention", "quant", "quant_skip"):
            options[name] = getattr(cfg.mesh, name)

        def sums(model: Chameleon, batch: Batch) -> LossSums:
            model = constrain_weights(jax.tree.map(lambda w: w.astype(compute), model), STORE)
            hidden = model(batch.inputs, batch.positions, batch.segments, **options)
            weights = batch.learn.astype(jnp.float32)
            return step_loss(hidden, model.head[...], batch.targets, weights, 0.0, cfg.mesh.loss_chunk)[1]

        self._sums = DeviceJit(sums)

    def __call__(self, model: Chameleon, batches: Iterable[Batch]) -> float:
        """The mean over the learned tokens of global ``batches`` on the mesh, in nats; NaN where none is learned."""
        total = LossSums.zero()
        with jax.set_mesh(self._mesh):
            for batch in batches:
                total = jax.tree.map(jnp.add, total, self._sums(model, batch))
        xent, _, tokens = jax.device_get(total)
        return float(xent) / float(tokens) if tokens else float("nan")

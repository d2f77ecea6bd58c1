"""The training step as one compiled program for each shape of batch, and a line on the screen whenever one is made."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lumina_jax.batch import Batch
from lumina_jax.config import Experiment
from lumina_jax.sharding import ROWS
from lumina_jax.train.step import Metrics, Step, TrainState, jitted_step, state_shapes

Shape = tuple[int, int]


class Programs:
    """Runs ``step``, which compiles when a shape first comes, or what :meth:`compile_all` has compiled ahead.

    ``tell`` is given a line for each program.
    """

    def __init__(self, cfg: Experiment, mesh: Mesh, step: Step, tell: Callable[[str], None]):
        self._cfg, self._mesh, self._tell = cfg, mesh, tell
        self._step = step
        self._by_shape: dict[Shape, Step] = {}

    def compile_all(self) -> None:
        """Compiles the step for every one of ``data.buckets``, on shapes alone."""
        jitted, state = jitted_step(self._cfg, self._mesh), state_shapes(self._cfg, self._mesh)
        for length in self._cfg.data.buckets:
            shape, begin = (self._cfg.data.rows(length), length), time.monotonic()
            with jax.set_mesh(self._mesh):
                self._by_shape[shape] = jitted.lower(state, batch_shapes(shape, self._mesh)).compile()
            self._told(shape, begin, "ahead")

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        shape = batch.inputs.shape
        if shape in self._by_shape:
            with jax.set_mesh(self._mesh):
                return self._by_shape[shape](state, batch)
        begin = time.monotonic()
        out = self._step(state, batch)
        self._by_shape[shape] = self._step
        self._told(shape, begin, f"program {len(self._by_shape)} of at most {len(self._cfg.data.buckets)}")
        return out

    def _told(self, shape: Shape, begin: float, which: str) -> None:
        seconds = time.monotonic() - begin
        self._tell(f"compiled the step for {shape[0]:,} rows of {shape[1]:,} tokens in {seconds:.1f} s ({which})")


def batch_shapes(shape: Shape, mesh: Mesh) -> Batch:
    """A global batch of ``shape`` [B T] without any memory, as :func:`lumina_jax.sharding.global_batch` makes them."""
    part = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, P(ROWS)))
    return Batch(**dict.fromkeys(Batch._fields, part) | {"learn": part.update(dtype=jnp.bool_)})

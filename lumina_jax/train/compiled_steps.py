"""The training step, compiled once for each shape of batch."""

import time
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lumina_jax.batch import DTYPES, Batch
from lumina_jax.cluster.processes import Group, SingleProcess
from lumina_jax.config import Experiment
from lumina_jax.progress import waiting
from lumina_jax.sharding import ROWS
from lumina_jax.train.step import Metrics, Step, TrainState, jitted_step, state_shapes

BatchShape = tuple[int, int]
"""[B T] of a global batch."""


class CompiledSteps:
    """A :data:`Step` that runs ``step``, which compiles for each new shape, or the programs of :meth:`compile_all`.

    ``print_line`` gets a line for each compilation, and ``group`` is told of it: no step may take as long. ``seconds`` is how long
    all of them took.
    """

    def __init__(
        self,
        cfg: Experiment,
        mesh: Mesh,
        step: Step,
        print_line: Callable[[str], None],
        group: Group | None = None,
    ):
        self._cfg, self._mesh, self._step, self._print_line = cfg, mesh, step, print_line
        self._group = group or SingleProcess()
        self._by_shape: dict[BatchShape, Step] = {}
        self.seconds = 0.0

    def print_to(self, print_line: Callable[[str], None]) -> None:
        """Lines go to ``print_line`` from now on."""
        self._print_line = print_line

    def compile_all(self) -> None:
        """Compiles the step for every length in ``data.buckets``, without data."""
        for length in self._cfg.data.buckets:
            if (shape := (self._cfg.data.rows(length), length)) not in self._by_shape:
                self.compile(shape)

    def compile(self, shape: BatchShape) -> jax.stages.Compiled:
        """Compiles the step for global batches [B T], without data; they will run it."""
        start, state = time.monotonic(), state_shapes(self._cfg, self._mesh)
        with (
            waiting(f"compiling the step for {shape[0]:,} rows of {shape[1]:,} tokens, once"),
            jax.set_mesh(self._mesh),
        ):
            lowered = jitted_step(self._cfg, self._mesh).lower(state, batch_shapes(shape, self._mesh))
            self._by_shape[shape] = compiled = lowered.compile()
        self._print_time(shape, start, "ahead")
        return compiled

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        shape = batch.inputs.shape
        if shape in self._by_shape:
            with jax.set_mesh(self._mesh):
                return self._by_shape[shape](state, batch)
        start, activity = time.monotonic(), f"compiling the step for {shape[0]:,} rows of {shape[1]:,} tokens"
        self._group.doing(activity)
        with waiting(f"{activity}, once"):
            result = self._step(state, batch)
        self._by_shape[shape] = self._step
        self._print_time(shape, start, f"program {len(self._by_shape)} of at most {len(self._cfg.data.buckets)}")
        return result

    def _print_time(self, shape: BatchShape, start: float, which: str) -> None:
        seconds = time.monotonic() - start
        self.seconds += seconds
        self._print_line(f"compiled the step for {shape[0]:,} rows of {shape[1]:,} tokens in {seconds:.1f} s ({which})")


def batch_shapes(shape: BatchShape, mesh: Mesh) -> Batch:
    """The shapes, dtypes and shardings of a global batch [B T], as :func:`lumina_jax.sharding.global_batch` places it."""
    rows = NamedSharding(mesh, P(ROWS))
    return Batch(*(jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for dtype in DTYPES))

"""A training run: from its first step, or from its newest checkpoint, to its last step."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from itertools import islice
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lumina_jax.batch import Batch
from lumina_jax.cluster.processes import Group, SingleProcess
from lumina_jax.config import Experiment
from lumina_jax.errors import InputError
from lumina_jax.progress import waiting
from lumina_jax.sharding import AXES, check_rows, global_batch, make_mesh
from lumina_jax.train.checkpoint import Saver, load_weights, newest
from lumina_jax.train.compiled_steps import CompiledSteps
from lumina_jax.train.lease import sole_run
from lumina_jax.train.metrics import MetricsLog
from lumina_jax.train.profile import ProfiledSteps
from lumina_jax.train.save_clock import SaveClock
from lumina_jax.train.step import TrainState, init_state, make_step, state_shapes, steps


def train(
    cfg: Experiment, batches: Callable[[int], Iterator[Batch]], show: bool = True, group: Group | None = None
) -> TrainState:
    """Trains ``cfg`` to ``cfg.optim.steps`` and returns the state.

    ``batches(start)`` yields the rows of this process (see data_share) of every global batch from step ``start`` on. Starts from
    the newest checkpoint in ``cfg.out``; else from the weights of ``cfg.start``; else from random weights. On SIGTERM saves the
    state and raises SystemExit(143). ``group`` are the processes of the run (default: this one alone); an error in one of them,
    or its death, ends all.

    Raises InputError when ``batches`` end before ``cfg.optim.steps``, NotFiniteError when a loss is NaN or infinite.
    """
    group = group or SingleProcess()
    mesh = make_mesh(cfg.mesh)
    for length in cfg.data.buckets:
        check_rows(cfg.data.rows(length) // cfg.optim.accumulate, mesh)
    first = jax.process_index() == 0
    alone = sole_run(cfg.out, cfg.pod.lease_timeout, show) if first else nullcontext()
    with alone as lease, closing(Saver(cfg, lease.check if lease else lambda: None)) as saver, group.guard():
        group.doing("loading")
        with waiting("making the state", show=show):
            start, state = saver.restore(state_shapes(cfg, mesh)) or (0, initial_state(cfg, mesh))
        if start < cfg.optim.steps:
            group.barrier("loading the state", cfg.pod.stall_timeout)
            state = _run_steps(cfg, saver, start, state, batches(start), show, group)
        group.doing("its end")
    group.barrier("the end", cfg.pod.stall_timeout)
    return state


def _run_steps(
    cfg: Experiment, saver: Saver, start: int, state: TrainState, rows: Iterator[Batch], show: bool, group: Group
) -> TrainState:
    """Runs the steps after ``start`` on ``rows``, those of this process; logs and saves; returns the last state."""
    mesh, last, done = make_mesh(cfg.mesh), cfg.optim.steps, start
    plain_step, log = make_step(cfg, mesh), MetricsLog(cfg, start, show, saver.check)
    compiled = CompiledSteps(cfg, mesh, plain_step, log.print_line)
    profiled = ProfiledSteps(cfg, compiled, start)
    clock = SaveClock(cfg.save_minutes, mesh)
    with closing(log), closing(_Preemption(mesh)) as preemption, closing(profiled):
        if cfg.compile_ahead:
            group.doing("compiling ahead")
            compiled.compile_all()
        batches = GlobalBatches(islice(rows, last - start), mesh, start, group)
        for done, state, metrics in steps(state, batches, profiled, start):  # noqa: B020, replaced each step
            if done == start + 1:
                group.barrier("compiling the first step", cfg.pod.stall_timeout)
            log.write(done, metrics, batches.wait_seconds)
            saver.check()
            stopping, due = preemption.requested(), clock.due()
            if stopping or due or done % cfg.save_every == 0 or done == last:
                log.sync()
                group.barrier(f"saving step {done}", cfg.pod.join_timeout)
                saver.save(done, state)
                clock.saved()
            if stopping:
                raise SystemExit(143)
    if done < last:
        raise InputError(f"the batches ended after step {done}, but optim.steps is {last}; give a batch for each step")
    return state


class GlobalBatches:
    """Iterator over global batches on the devices, made from the rows of this process; tells ``group`` the current step.

    A batch is taken from ``host_batches``, which read ahead, and sent to the devices while they still run the step before.
    ``wait_seconds`` is how long the newest batch was waited for: near 0 unless reading is slower than training.
    """

    def __init__(self, host_batches: Iterator[Batch], mesh: Mesh, start: int, group: Group):
        self._host_batches, self._mesh, self._step, self._group = host_batches, mesh, start, group
        self.wait_seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._step += 1
        self._group.doing(f"reading batch {self._step}")
        start = time.monotonic()
        rows = next(self._host_batches)
        self.wait_seconds = time.monotonic() - start
        self._group.doing(f"step {self._step}")
        return global_batch(rows, self._mesh)


def initial_state(cfg: Experiment, mesh: Mesh) -> TrainState:
    """The state before the first step: random weights, or those of the run folder or checkpoint ``cfg.start``."""
    state = init_state(cfg, mesh)
    if not cfg.start:
        return state
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding), state.model)
    return state._replace(model=load_weights(newest(cfg.start), shapes))


class _Preemption:
    """Whether this run must stop: SIGTERM arrived here or in any other process.

    Each call starts a reduction over all processes and returns the result of the call before, so that all processes stop after
    the same step and none waits. JAX's preemption service cannot be used: Orbax asks it about old steps from a thread, after which
    processes disagree.
    """

    def __init__(self, mesh: Mesh):
        self._signaled, self._pending = False, None
        self._split = NamedSharding(mesh, P(AXES))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))
        self._old_handler = signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signaled = True

    def requested(self) -> bool:
        if jax.process_count() == 1:
            return self._signaled
        flags = np.full(jax.local_device_count(), self._signaled)
        previous, self._pending = self._pending, self._any(jax.make_array_from_process_local_data(self._split, flags))
        return previous is not None and bool(previous)

    def close(self) -> None:
        # The old handler is None when it was not set from Python; such a handler cannot be set again.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if self._old_handler is None else self._old_handler)

"""A run from its first step to its last, over whatever was done of it before."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lumina_jax.batch import Batch
from lumina_jax.cluster.processes import Alone, Group
from lumina_jax.config import Experiment
from lumina_jax.errors import InputError
from lumina_jax.sharding import AXES, check_rows, global_batch, make_mesh
from lumina_jax.train.checkpoint import Saver, load_weights, newest
from lumina_jax.train.metrics import MetricsLog
from lumina_jax.train.programs import Programs
from lumina_jax.train.step import TrainState, init_state, make_step, state_shapes, steps
from lumina_jax.train.trace import Trace


def train(
    cfg: Experiment, batches: Callable[[int], Iterator[Batch]], show: bool = True, group: Group | None = None
) -> TrainState:
    """Trains ``cfg`` to ``cfg.optim.steps`` and returns the state.

    ``batches(start)`` yields this process's rows (data_share) of each global batch from step ``start`` on. Resumes from the newest
    checkpoint in ``cfg.out``; else begins with the weights of ``cfg.start``; else with random ones. On SIGTERM the
    state is saved and SystemExit(143) raised. Raises ValueError when ``batches`` end before ``cfg.optim.steps``.
    ``group`` are the processes of the run: an error here, or the death of another, ends all (default: this one alone).
    """
    group = group or Alone()
    mesh = make_mesh(cfg.mesh)
    for length in cfg.data.buckets:
        check_rows(cfg.data.rows(length) // cfg.optim.accumulate, mesh)
    with closing(Saver(cfg)) as saver, group.guard():
        group.at("loading")
        found = saver.restore(state_shapes(cfg, mesh))
        start, state = found if found else (0, begin(cfg, mesh))
        if start < cfg.optim.steps:
            group.meet("loading the state", cfg.pod.patience)
            state = _go_on(cfg, mesh, saver, start, state, batches(start), show, group)
        group.at("its end")
    group.meet("the end", cfg.pod.patience)
    return state


def _go_on(
    cfg: Experiment,
    mesh: Mesh,
    saver: Saver,
    start: int,
    state: TrainState,
    local: Iterator[Batch],
    show: bool,
    group: Group,
) -> TrainState:
    """The steps from ``start`` to the last, on this host's rows ``local`` of each."""
    last, done = cfg.optim.steps, start
    with (
        closing(MetricsLog(cfg, start, show)) as log,
        closing(_Preemption(mesh)) as preempted,
        closing(Trace(cfg, programs := Programs(cfg, mesh, make_step(cfg, mesh), log.print_line), start)) as trace,
    ):
        if cfg.compile_ahead:
            group.at("compiling ahead")
            programs.compile_all()
        feed = Feed(islice(local, last - start), mesh, start, group)
        for done, state, metrics in steps(state, feed, trace, start):  # noqa: B020, replaced each step
            if done == start + 1:
                group.meet("compiling the first step", cfg.pod.patience)
            log.write(done, metrics, feed.waited)
            stopping = preempted.heard()
            if stopping or done % cfg.save_every == 0 or done == last:
                log.sync()
                group.meet(f"saving step {done}", cfg.pod.wait)
                saver.save(done, state)
            if stopping:
                raise SystemExit(143)
    if done < last:
        raise InputError(
            f"the batches ended after step {done}, but optim.steps is {last}; give as many batches as steps"
        )
    return state


class Feed:
    """This host's rows -> global batches on the devices, read while those compute; says at which one the process is.

    A step is only queued when it is asked for: while it runs, the batch of the next is taken from what was read ahead and
    sent to the devices. ``waited`` are the seconds it took until the last one's rows were there, which are few unless reading
    is slower than training.
    """

    def __init__(self, local: Iterator[Batch], mesh: Mesh, start: int, group: Group):
        self._local, self._mesh, self._step, self._group = local, mesh, start, group
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._step += 1
        self._group.at(f"reading batch {self._step}")
        begin = time.monotonic()
        rows = next(self._local)
        self.waited = time.monotonic() - begin
        self._group.at(f"step {self._step}")
        return global_batch(rows, self._mesh)


def begin(cfg: Experiment, mesh: Mesh) -> TrainState:
    """The state before the first step: random, or with the weights of the earlier run or checkpoint ``cfg.start``."""
    state = init_state(cfg, mesh)
    if not cfg.start:
        return state
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding), state.model)
    return state._replace(model=load_weights(newest(Path(cfg.start)), shapes))


class _Preemption:
    """Whether the machine is about to be taken away: SIGTERM here, or in any process of the run.

    Each step asks all processes at once and hears of the step before, so that all stop behind the same step and none waits.
    JAX's own service for this is of no use: Orbax asks it about old steps from a thread, and processes then disagree.
    """

    def __init__(self, mesh: Mesh):
        self._asked, self._past = False, None
        self._split = NamedSharding(mesh, P(AXES))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))
        self._before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_):
        self._asked = True

    def heard(self) -> bool:
        if jax.process_count() == 1:
            return self._asked
        mine = np.full(jax.local_device_count(), self._asked)
        past, self._past = self._past, self._any(jax.make_array_from_process_local_data(self._split, mine))
        return past is not None and bool(past)

    def close(self):
        # None stands for a handler that was not set from Python, which cannot be set again.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)

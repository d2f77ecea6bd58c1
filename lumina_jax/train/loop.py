"""A run from its first step to its last, over whatever was done of it before."""

import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lumina_jax.batch import Batch
from lumina_jax.config import Experiment
from lumina_jax.sharding import check_rows, global_batch, make_mesh, shardings
from lumina_jax.train.checkpoint import Saver, load_weights, newest
from lumina_jax.train.metrics import Log
from lumina_jax.train.step import TrainState, init_state, make_step, state_shapes, steps


def train(cfg: Experiment, batches: Callable[[int], Iterator[Batch]], show: bool = True) -> TrainState:
    """Trains ``cfg`` to ``cfg.optim.steps`` and returns the state.

    ``batches(start)`` yields this host's rows of each global batch from step ``start`` on. Resumes from the newest
    checkpoint in ``cfg.out``; else begins with the weights of ``cfg.start``; else with random ones. On SIGTERM the
    state is saved and SystemExit(143) raised. Raises ValueError when ``batches`` end before ``cfg.optim.steps``.
    """
    mesh = make_mesh(cfg.mesh)
    check_rows(cfg.data.batch // cfg.optim.accumulate, mesh)
    with closing(Saver(cfg)) as saver:
        found = saver.restore(state_shapes(cfg, mesh))
        done, state = found if found else (0, begin(cfg, mesh))
        last = cfg.optim.steps
        if done >= last:
            return state
        with closing(Log(cfg, done, show)) as log, closing(_Preemption()) as preempted:
            world = (global_batch(local, mesh) for local in islice(batches(done), last - done))
            for done, state, metrics in steps(state, world, make_step(cfg, mesh), done):  # noqa: B020, replaced each step
                log.write(done, metrics)
                stopping = preempted.at(done)
                if stopping or done % cfg.save_every == 0 or done == last:
                    log.flush()
                    saver.save(done, state)
                if stopping:
                    raise SystemExit(143)
    if done < last:
        raise ValueError(
            f"the batches ended after step {done}, but optim.steps is {last}; give as many batches as steps"
        )
    return state


def begin(cfg: Experiment, mesh: Mesh) -> TrainState:
    """The state before the first step: random, or with the weights of the earlier run or checkpoint ``cfg.start``."""
    state = init_state(cfg, mesh)
    if not cfg.start:
        return state
    places = shardings(state.model, mesh)
    shapes = jax.tree.map(lambda w, s: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=s), state.model, places)
    return state._replace(model=load_weights(newest(Path(cfg.start)), shapes))


class _Preemption:
    """Whether the machine is about to be taken away: SIGTERM here, or on any host of a pod (agreed between them)."""

    def __init__(self):
        self._asked = False
        self._many = jax.process_count() > 1
        if not self._many:
            self._before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_):
        self._asked = True

    def at(self, step: int) -> bool:
        return multihost_utils.reached_preemption_sync_point(step) if self._many else self._asked

    def close(self):
        if not self._many:
            signal.signal(signal.SIGTERM, self._before)

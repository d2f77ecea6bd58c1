"""A training run: from its first step, or from its newest checkpoint, to its last step."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path

import jax
from jax.sharding import Mesh

from lumina_jax.batch import Batch
from lumina_jax.cluster.agreement import text_from_first
from lumina_jax.cluster.pace import StepTimes
from lumina_jax.cluster.processes import Group, SingleProcess
from lumina_jax.config import Experiment
from lumina_jax.errors import InputError
from lumina_jax.faults import EXIT_RESTART, note_progress
from lumina_jax.progress import waiting
from lumina_jax.sharding import check_rows, global_batch, make_mesh
from lumina_jax.storage import held
from lumina_jax.train.checkpoint import Saver, load_weights, newest
from lumina_jax.train.compiled_steps import CompiledSteps
from lumina_jax.train.metrics import MetricsLog
from lumina_jax.train.profile import ProfiledSteps
from lumina_jax.train.step import TrainState, init_state, make_step, state_shapes, steps
from lumina_jax.train.stopping import Stopped, Stopping, announced

SECONDS_BETWEEN_NAMES = 60.0
"""Between two lines that name the slowest process."""


def train(
    cfg: Experiment, batches: Callable[[int], Iterator[Batch]], show: bool = True, group: Group | None = None
) -> TrainState:
    """Trains ``cfg`` to ``cfg.optim.steps`` and returns the state.

    ``batches(start)`` yields the rows of this process (see data_share) of every global batch from step ``start`` on. Starts from
    the newest checkpoint in ``cfg.out``; else from the weights of ``cfg.start``; else from random weights. On Ctrl-C and SIGTERM
    saves the state and raises SystemExit(130 or 143). ``group`` are the processes of the run (default: this one alone); an error
    in one of them, or its death, ends all. When a slice came back (``pod.elastic``), the run ends after a save with
    SystemExit(75), to be started again with it.

    Raises InputError when ``batches`` end before ``cfg.optim.steps``, NotFiniteError when a loss is NaN or infinite.
    """
    group = group or SingleProcess()
    mesh = make_mesh(cfg.mesh)
    for length in cfg.data.buckets:
        check_rows(cfg.data.rows(length) // cfg.optim.accumulate, mesh)
    alone = held(Path(cfg.out), "training") if jax.process_index() == 0 else nullcontext()
    with announced(), closing(Saver(cfg)) as saver, group.guard(), alone:
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
    plain_step, log = make_step(cfg, mesh), MetricsLog(cfg, start, show)
    compiled = CompiledSteps(cfg, mesh, plain_step, log.print_line, group)
    profiled = ProfiledSteps(cfg, compiled, start)
    with closing(log), closing(Stopping(mesh)) as stopping, closing(profiled):
        if cfg.compile_ahead:
            group.doing("compiling ahead")
            compiled.compile_all()
        batches = GlobalBatches(islice(rows, last - start), mesh, start, group, StepTimes.of(cfg.pod))
        for done, state, metrics in steps(state, batches, profiled, start):  # noqa: B020, replaced each step
            if done == start + 1:
                group.barrier("compiling the first step", cfg.pod.stall_timeout)
            with batches.waiting_for_devices():
                log.write(done, metrics, batches.wait_seconds)
            if done % cfg.log_every == 0:
                batches.name_slowest(log.print_line)
            number, returned = stopping.requested(), ()
            if number or done % cfg.save_every == 0 or done == last:
                log.sync()
                returned = group.barrier(f"saving step {done}", cfg.pod.join_timeout)
                group.doing(f"saving step {done}")
                saver.save(done, state)
                note_progress(str(done))
            if number:
                raise Stopped.by_signal(number, cfg, done)
            if returned and done < last:
                raise Stopped(
                    EXIT_RESTART, f"{cfg.name}: slice {returned[0]} is back; step {done} is saved, start all again"
                )
    if done < last:
        raise InputError(f"the batches ended after step {done}, but optim.steps is {last}; give a batch for each step")
    return state


class GlobalBatches:
    """Iterator over global batches on the devices, made from the rows of this process; tells ``group`` the current step.

    A batch is taken from ``host_batches``, which read ahead, and sent to the devices while they still run the step before.
    ``wait_seconds`` is how long the newest batch was waited for: near 0 unless reading is slower than training. ``times`` are
    those of the steps, by which ``group`` notices one that takes too long and a process that makes the others wait.
    """

    def __init__(self, host_batches: Iterator[Batch], mesh: Mesh, start: int, group: Group, times: StepTimes):
        self._host_batches, self._mesh, self._step, self._group = host_batches, mesh, start, group
        self._times, self._device_seconds, self._named = times, 0.0, time.monotonic()
        self.wait_seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._step += 1
        self._group.doing(f"reading batch {self._step}", self._times.limit)
        start = time.monotonic()
        rows = next(self._host_batches)
        now = time.monotonic()
        self.wait_seconds = now - start
        self._times.add(now, self.wait_seconds, self._device_seconds)
        self._device_seconds = 0.0
        self._group.pace(self._times.pace)
        self._group.doing(f"step {self._step}", self._times.limit)
        return global_batch(rows, self._mesh)

    @contextmanager
    def waiting_for_devices(self) -> Iterator[None]:
        """A block that waits for the devices, and works little by itself."""
        start = time.monotonic()
        yield
        self._device_seconds += time.monotonic() - start

    def name_slowest(self, print_line: Callable[[str], None]) -> None:
        """Prints which process makes the others wait, if one does, at most every SECONDS_BETWEEN_NAMES."""
        now = time.monotonic()
        if now - self._named > SECONDS_BETWEEN_NAMES and (line := self._group.slowest()):
            self._named = now
            print_line(line)


def initial_state(cfg: Experiment, mesh: Mesh) -> TrainState:
    """The state before the first step: random weights, or those of the run folder or checkpoint ``cfg.start``."""
    state = init_state(cfg, mesh)
    if not cfg.start:
        return state
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding), state.model)
    # One process looks for it: from all of them that would be a listing each.
    return state._replace(model=load_weights(Path(text_from_first(lambda: str(newest(Path(cfg.start))))), shapes))

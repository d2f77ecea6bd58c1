"""A training run: from its first step, or from its newest checkpoint, to its last step."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from itertools import islice

import jax
from etils import epath
from jax.sharding import Mesh

from lumina_jax.batch import Batch
from lumina_jax.cluster.agreement import text_from_first
from lumina_jax.cluster.pace import StepTimes
from lumina_jax.cluster.processes import Group, SingleProcess
from lumina_jax.config import Experiment
from lumina_jax.errors import InputError, NotFiniteError
from lumina_jax.faults import note_progress
from lumina_jax.history import BatchSpan, Folders, batch_span, changed_now
from lumina_jax.progress import print_line, waiting
from lumina_jax.sharding import check_rows, make_mesh
from lumina_jax.train.bad_batches import BadBatches
from lumina_jax.train.checkpoint import Saver, load_weights, newest
from lumina_jax.train.compiled_steps import CompiledSteps
from lumina_jax.train.continuing import in_words
from lumina_jax.train.global_batches import GlobalBatches
from lumina_jax.train.goodput import Goodput, read_goodput
from lumina_jax.train.guards import GoBackError
from lumina_jax.train.lease import sole_run
from lumina_jax.train.metrics import MetricsLog
from lumina_jax.train.profile import ProfiledSteps
from lumina_jax.train.run_log import RunLog, order_of
from lumina_jax.train.save_clock import SaveClock
from lumina_jax.train.step import TrainState, init_state, make_step, state_shapes, steps
from lumina_jax.train.stopping import Stopped, Stopping, announced
from lumina_jax.train.watch import HELD_OUT, Watcher

Batches = Callable[[BatchSpan], Iterator[Batch]]
"""Yields the rows of this process (see data_share) of each global batch of a span."""
RecordNames = Callable[[BatchSpan], Sequence[str]]
"""The names of all records in the batches of a span."""


def train(
    cfg: Experiment,
    batches: Batches,
    show: bool = True,
    group: Group | None = None,
    folders: Folders = (),
    record_names: RecordNames | None = None,
    watchers: Sequence[Watcher] = (),
) -> TrainState:
    """Trains ``cfg`` to ``cfg.optim.steps`` and returns the state.

    Starts from the newest checkpoint in ``cfg.out``; else from the weights of ``cfg.start``; else from random weights. On Ctrl-C
    and SIGTERM saves the state and raises SystemExit(130 or 143). ``group`` are the processes of the run (default: this one
    alone); an error in one of them, or its death, ends all. When a slice came back (``pod.elastic``), the run ends after a save
    with SystemExit(75), to be started again with it. ``folders`` are the fingerprints of the token folders, ``record_names``
    names what a batch that ends the run holds, ``watchers`` measure the model on the way.

    Raises InputError when ``batches`` end before ``cfg.optim.steps``, NotFiniteError when ``cfg.guard`` lets a loss that is NaN or
    infinite, or too many spikes, end the run.
    """
    group = group or SingleProcess()
    mesh = make_mesh(cfg.mesh)
    for length in cfg.data.buckets:
        check_rows(cfg.data.rows(length) // cfg.optim.accumulate, mesh)
    first = jax.process_index() == 0
    alone = sole_run(cfg.out, cfg.pod.lease_timeout, show) if first else nullcontext()
    with (
        announced(),
        alone as lease,
        closing(Saver(cfg, lease.check if lease else lambda: None, folders)) as saver,
        group.guard(),
    ):
        run = Run(cfg, mesh, saver, batches, group, show, record_names, watchers)
        state = run.to_the_end()
        group.doing("its end")
        ended = time.monotonic()
    run.finish(time.monotonic() - ended)
    group.barrier("the end", cfg.pod.stall_timeout)
    return state


class Run:
    """The steps of one run from its checkpoint to the last one, again where its guards send it back; arguments as in train."""

    def __init__(
        self,
        cfg: Experiment,
        mesh: Mesh,
        saver: Saver,
        batches: Batches,
        group: Group,
        show: bool,
        record_names: RecordNames | None,
        watchers: Sequence[Watcher],
    ):
        self._cfg, self._mesh, self._saver, self._batches = cfg, mesh, saver, batches
        self._group, self._show, self._watchers = group, show, watchers
        self._bad_batches = BadBatches(cfg, saver, record_names)
        self._events = RunLog(cfg.out)
        self._compiled = CompiledSteps(cfg, mesh, make_step(cfg, mesh), print_line, group)
        self._goodput = Goodput(read_goodput(cfg.out) if jax.process_index() == 0 else [], 0)
        self._order = order_of(cfg, saver.folders)
        self._backs = 0
        self._trained = False

    def to_the_end(self) -> TrainState:
        """Trains to the last step and returns the state."""
        back: tuple[int, str] | None = None
        while True:
            start, state = self._restore()
            if back:
                self._go_back(start, *back)
            if start >= self._cfg.optim.steps:
                return state
            self._group.barrier("loading the state", self._cfg.pod.stall_timeout)
            self._trained = True
            try:
                return self._steps(start, state)
            except GoBackError as error:
                back = error.step, error.reason
            del state
            gc.collect()  # what the error still held: the next restore needs the memory

    def finish(self, seconds_saving: float) -> None:
        """Writes and prints where the time went, unless nothing was to be done; the last save took ``seconds_saving``."""
        if jax.process_index() == 0 and self._trained:
            self._goodput.add("saving", seconds_saving)
            self._goodput.mark(self._cfg.optim.steps, ended=True)
            self._goodput.write(self._cfg.out)
            self._say(self._goodput.in_words())

    def _restore(self) -> tuple[int, TrainState]:
        """(steps done, state) of the newest checkpoint, or of the beginning."""
        cfg, begun = self._cfg, time.monotonic()
        self._group.doing("loading")
        self._saver.check(wait=True)
        with waiting("making the state", show=self._show):
            start, state = self._saver.restore(state_shapes(cfg, self._mesh)) or (0, initial_state(cfg, self._mesh))
        history = self._saver.history
        # A checkpoint knows what was left out before it, and history.jsonl what is to be left out behind it.
        self._saver.history += tuple(c for c in self._events.returns(start, self._order) if c not in history)
        lines = read_goodput(cfg.out) if jax.process_index() == 0 else []
        self._goodput = Goodput(lines, start, time.monotonic() - begun)
        if change := self._saver.change:
            self._events.add("changed", start, before=change.before, after=change.after)
            self._say(f"from step {start} on {in_words(change)}")
        self._events.add("started", start, steps=cfg.optim.steps, processes=jax.process_count())
        return start, state

    def _go_back(self, start: int, bad_step: int, reason: str) -> None:
        """Leaves out the batches behind ``start`` that led to ``bad_step``. Raises NotFiniteError when it did so too often."""
        cfg = self._cfg
        if self._backs >= cfg.guard.max_backs:
            raise NotFiniteError(
                f"{cfg.name}: step {bad_step}: {reason}; the run went back {self._backs} times, as often as guard.max_backs "
                "allows; lower optim.lr or raise optim.warmup, or go on from an older checkpoint"
            )
        skipped = bad_step - start + cfg.guard.skip_batches
        change = changed_now(start, f"step {bad_step}: {reason}", skipped=skipped)
        self._backs += 1
        self._saver.history += (change,)
        self._events.add_return(change, self._order)
        self._say(f"{change.why}; back to step {start}, without {skipped} batches")

    def _steps(self, start: int, state: TrainState) -> TrainState:
        """Runs the steps after ``start``; logs, measures and saves; returns the last state."""
        cfg, group, goodput, last = self._cfg, self._group, self._goodput, self._cfg.optim.steps
        log, done = MetricsLog(cfg, start, self._show, self._saver.check, group.paces), start
        self._compiled.print_to(log.print_line)
        profiled = ProfiledSteps(cfg, self._compiled, start)
        clock = SaveClock(cfg.save_minutes, self._mesh)
        span = batch_span(start, last, cfg.data, self._saver.folders, self._saver.history)
        with closing(log), closing(Stopping(self._mesh)) as stopping, closing(profiled):
            if cfg.compile_ahead:
                group.doing("compiling ahead")
                self._compiled.compile_all()
            rows = islice(self._batches(span), last - start)
            rows = GlobalBatches(rows, self._mesh, start, group, StepTimes.of(cfg.pod))
            with self._bad_batches.saved(rows):
                for done, state, metrics in steps(state, rows, profiled, start):  # noqa: B020, replaced each step
                    if done == start + 1:
                        with goodput.measure("compiling"):
                            group.barrier("compiling the first step", cfg.pod.stall_timeout)
                    goodput.add("waiting for data", rows.wait_seconds)
                    with rows.waiting_for_devices():
                        log.write(done, metrics, rows.wait_seconds)
                    rows.name_slowest(log.print_line)
                    self._saver.check()
                    number, due = stopping.requested(), clock.due()
                    measured = self._measure(done, state, log)
                    if number or due or done % cfg.save_every == 0 or done == last:
                        log.sync()
                        self._save(done, state, measured)
                        clock.saved()
                    if number:
                        raise Stopped.by_signal(number, cfg, done)
        if done < last:
            raise InputError(
                f"the batches ended after step {done}, but optim.steps is {last}; give a batch for each step"
            )
        return state

    def _say(self, line: str) -> None:
        if self._show and jax.process_index() == 0:
            print_line(f"{self._cfg.name}: {line}", stderr=False)

    def _measure(self, done: int, state: TrainState, log: MetricsLog) -> dict[str, float]:
        """What the watchers whose turn it is measure after step ``done``; into the log."""
        values, last = {}, done == self._cfg.optim.steps
        for watcher in self._watchers:
            if last or done % watcher.every == 0:
                self._group.doing(f"{watcher.name} after step {done}")
                with self._goodput.measure("evaluating"):
                    values |= watcher.measure(done, state)
                log.add_images(done, watcher.images())
        if values:
            log.add(values)
        return values

    def _save(self, done: int, state: TrainState, measured: dict[str, float]) -> None:
        """Saves the state after step ``done``, and where the time went until then. Raises Stopped when a slice is back."""
        with self._goodput.measure("saving"):
            returned = self._group.barrier(f"saving step {done}", self._cfg.pod.join_timeout)
            self._group.doing(f"saving step {done}")
            self._saver.save(done, state, measured.get(HELD_OUT))
            note_progress(str(done))
        self._goodput.add("compiling", self._compiled.seconds)
        self._compiled.seconds = 0.0
        if jax.process_index() == 0:
            self._goodput.mark(done)
            self._goodput.write(self._cfg.out)
        if returned and done < self._cfg.optim.steps:
            raise Stopped.for_slice(returned[0], self._cfg, done)


def initial_state(cfg: Experiment, mesh: Mesh) -> TrainState:
    """The state before the first step: random weights, or those of the run folder or checkpoint ``cfg.start``."""
    state = init_state(cfg, mesh)
    if not cfg.start:
        return state
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding), state.model)
    # One process looks for it: from all of them that would be a listing each.
    return state._replace(model=load_weights(epath.Path(text_from_first(lambda: str(newest(cfg.start)))), shapes))

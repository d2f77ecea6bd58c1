"""A trace of a few steps for Perfetto and XProf (profile.steps)."""

from pathlib import Path

import jax

from lumina_jax.batch import Batch
from lumina_jax.config import Experiment
from lumina_jax.train.step import Metrics, Step, TrainState

FOLDER = "profile"


class Trace:
    """Runs steps, those after ``done``, and writes what happens in ``cfg.profile.span`` of them to ``cfg.out``/profile.

    Waits for the device before the first and behind the last of them, so that the trace holds these steps and no others.
    """

    def __init__(self, cfg: Experiment, run: Step, done: int):
        self._run, self._step, self._span = run, done, cfg.profile.span
        index, folder = jax.process_index(), Path(cfg.out) / FOLDER
        self._mine = cfg.profile.all or index == 0
        self._folder = folder / f"process-{index}" if cfg.profile.all else folder
        self._on = False

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        self._step += 1
        if self._step not in self._span or not self._mine:
            return self._run(state, batch)
        if not self._on:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._on = True
        with jax.profiler.StepTraceAnnotation("train", step_num=self._step):
            state, metrics = self._run(state, batch)
        if self._step + 1 not in self._span:
            jax.block_until_ready(state)
            self.close()
        return state, metrics

    def close(self) -> None:
        """Writes a trace that is under way."""
        if not self._on:
            return
        self._on = False
        jax.profiler.stop_trace()
        print(
            f"{self._folder}: trace written; open perfetto_trace.json.gz at https://ui.perfetto.dev, "
            f"or: pip install xprof && xprof --logdir {self._folder}",
            flush=True,
        )

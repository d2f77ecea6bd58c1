"""Profiles of a few training steps, for Perfetto and XProf (``profile.steps``)."""

import jax

from lumina_jax.batch import Batch
from lumina_jax.config import Experiment
from lumina_jax.train.run_files import RunFiles
from lumina_jax.train.step import Metrics, Step, TrainState

FOLDER = "profile"


class ProfiledSteps:
    """A :data:`Step` that runs ``run_step`` and traces the steps of ``cfg.profile.span`` into ``cfg.out``/profile.

    ``done`` steps were run before the first call. Waits for the device before the first traced step and after the last one, so
    that the trace holds these steps and no others.
    """

    def __init__(self, cfg: Experiment, run_step: Step, done: int):
        self._run_step, self._step, self._span = run_step, done, cfg.profile.span
        index = jax.process_index()
        self._traces, self._out, self._tracing = cfg.profile.all or index == 0, cfg.out, False
        self._name = f"{FOLDER}/process-{index}" if cfg.profile.all else FOLDER

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        self._step += 1
        if self._step not in self._span or not self._traces:
            return self._run_step(state, batch)
        if not self._tracing:
            jax.block_until_ready(state)
            self._files = RunFiles(self._out)
            jax.profiler.start_trace(self._files.path(self._name), create_perfetto_trace=True)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=self._step):
            state, metrics = self._run_step(state, batch)
        if self._step + 1 not in self._span:
            jax.block_until_ready(state)
            self.close()
        return state, metrics

    def close(self) -> None:
        """Stops a running trace and writes it, to where ``cfg.out`` is."""
        if not self._tracing:
            return
        self._tracing = False
        jax.profiler.stop_trace()
        self._files.close()
        folder = f"{self._out}/{self._name}"
        print(
            f"{folder}: trace written; open perfetto_trace.json.gz at https://ui.perfetto.dev, "
            f"or: pip install xprof && xprof --logdir {folder}",
            flush=True,
        )

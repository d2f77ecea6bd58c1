"""Where a run's numbers go: metrics.jsonl (bit for bit reproducible), TensorBoard, and a progress bar or plain lines."""

import json
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from lumina_jax.config import Experiment
from lumina_jax.errors import NotFiniteError
from lumina_jax.train.step import Metrics

FILE = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 10
BOARD_EVERY = 10
"""Steps between points in TensorBoard: a scalar there takes longer than a small model's whole line in metrics.jsonl."""


class Log:
    """Takes each step's metrics and writes them one step late, so that reading them never makes the device wait.

    Only the first process writes.

    A resumed run first cuts from metrics.jsonl what the interrupted one wrote past its last checkpoint, so that the file
    ends up equal to that of a run that was never interrupted; speeds therefore go to TensorBoard and the screen alone.
    """

    def __init__(self, cfg: Experiment, start: int, show: bool = True):
        self._cfg, self._begin, self._start, self._tokens = cfg, time.monotonic(), start, 0.0
        self._writes = jax.process_index() == 0
        self._pending: tuple[int, Metrics, float] | None = None
        self._waited = 0.0
        self._file = None
        self._line_at = 0.0
        self._bar = None
        if not self._writes:
            return
        folder = Path(cfg.out)
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read(folder) if line["step"] <= start]
        temporary = folder / (FILE + ".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(folder / FILE)
        self._file = (folder / FILE).open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        if show and sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
            self._task = self._bar.add_task(cfg.name, total=cfg.optim.steps, completed=start, text="")
            self._bar.start()
        self._show = show

    def write(self, step: int, metrics: Metrics, waited: float = 0.0) -> None:
        """Takes the metrics of ``step``, and the seconds it ``waited`` for its batch; records those of the step before."""
        self.flush()
        self._pending = (step, metrics, waited)

    def flush(self) -> None:
        """Records what is pending. Raises FloatingPointError when its loss or gradient is not a number."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._record(*pending)

    def sync(self) -> None:
        """:meth:`flush`, then all lines to disk: storage that is a mounted bucket keeps what is not synced in memory."""
        self.flush()
        if self._writes:
            os.fsync(self._file.fileno())

    def say(self, line: str) -> None:
        """Puts a line on the screen, where this process shows anything."""
        if self._writes and self._show:
            print(f"{self._cfg.name}: {line}", flush=True)

    def _record(self, step: int, metrics: Metrics, waited: float) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics)._asdict().items()}
        if not (np.isfinite(values["loss"]) and np.isfinite(values["grad_norm"])):
            raise NotFiniteError(
                f"{self._cfg.name}: the loss of step {step} is {values['loss']} (gradient norm {values['grad_norm']}); "
                "lower optim.lr, raise optim.z_loss or optim.warmup, then start again from the last checkpoint"
            )
        self._tokens += values["tokens"]
        self._waited += waited
        if not self._writes or (step % self._cfg.log_every and step != self._cfg.optim.steps):
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        speed = self._tokens / max(time.monotonic() - self._begin, 1e-9)
        if step % BOARD_EVERY == 0:
            for name, value in (values | {"learned_tokens_per_second": speed, "wait": waited}).items():
                self._board.add_scalar(name, value, step)
        if self._show:
            self._report(step, values["loss"], speed)

    def _report(self, step: int, loss: float, speed: float) -> None:
        share = self._waited / max(time.monotonic() - self._begin, 1e-9)
        text = f"loss {loss:.3f}  {speed:,.0f} learned tok/s  {share:.1%} waiting for data"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif time.monotonic() - self._line_at > SECONDS_BETWEEN_LINES or step == self._cfg.optim.steps:
            self._line_at = time.monotonic()
            left = (self._line_at - self._begin) / max(step - self._start, 1) * (self._cfg.optim.steps - step)
            print(f"{self._cfg.name}: step {step}/{self._cfg.optim.steps}  {text}  {left:.0f} s left", flush=True)

    def close(self) -> None:
        if self._writes:
            if self._bar is not None:
                self._bar.stop()
            self._board.close()
            self._file.close()


def read(folder: Path | str) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl; a last line cut short by a kill is left out."""
    file = Path(folder) / FILE
    if not file.is_file():
        return []
    lines = file.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]

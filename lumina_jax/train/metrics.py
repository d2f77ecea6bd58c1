"""The numbers of a run: metrics.jsonl (bit for bit reproducible), loggers, and the progress on stdout."""

import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from lumina_jax.cluster.pace import Pace
from lumina_jax.config import Experiment
from lumina_jax.errors import InputError
from lumina_jax.progress import ProgressDisplay
from lumina_jax.storage import StorageFolder, atomic_write_text
from lumina_jax.train.guards import Guards
from lumina_jax.train.loggers.opened import Loggers
from lumina_jax.train.run_files import RunFiles
from lumina_jax.train.run_log import RunLog
from lumina_jax.train.step import Metrics

FILE = "metrics.jsonl"
PROCESS_CURVES = 64
"""Processes with curves of their own in the loggers; of more than these the median and the slowest are seen."""


class TrainingProgress(ProgressDisplay):
    """The progress of training, on stdout."""

    stderr = False
    seconds_between_lines = 10.0
    line = "{title}: step {done:.0f}/{total:.0f}  {text}  {time_left} left"


class MetricsLog:
    """Records the metrics of each step one step late, so that reading them never makes the device wait.

    All processes judge the numbers (:class:`Guards`); process 0 alone writes and, with ``show``, prints. A step that was skipped
    has "skipped": 1 in its line and lacks the numbers that are not finite.

    A resumed run first removes from metrics.jsonl the lines behind ``start``, the step of the checkpoint, so that the file ends
    up equal to that of a run that was never interrupted. Without a checkpoint the file is another run's, or of one that ended
    before its first save: it is kept under another name. Speeds, also the ``paces`` of the processes, differ between runs and go
    to the loggers and stdout alone.

    Where ``cfg.out`` is a URL the files grow on this machine and are uploaded by :meth:`sync` and :meth:`close`, if ``check``
    raises nothing.
    """

    def __init__(
        self,
        cfg: Experiment,
        start: int,
        show: bool = True,
        check: Callable[[], object] = lambda: None,
        paces: Callable[[], Mapping[str, Pace]] = dict,
    ):
        self._paces = paces
        self._cfg, self._start_time = cfg, time.monotonic()
        self._guards, self._events = Guards(cfg.guard, cfg.name), RunLog(cfg.out)
        self._measured: dict[str, float] = {}
        self._tokens = self._wait_seconds = 0.0
        self._pending: tuple[int, Metrics, float] | None = None
        self._writes, self._open = jax.process_index() == 0, ExitStack()
        if not self._writes:
            return
        self._files = RunFiles(cfg.out, check)
        self._open.callback(self._files.close)
        set_aside = self._files.set_aside(FILE) if start == 0 else ""
        path = self._files.fetch(FILE)
        lines = (json.dumps(line) + "\n" for line in read_metrics(path.parent) if line["step"] <= start)
        atomic_write_text(path, "".join(lines))
        self._file = self._open.enter_context(path.open("a", buffering=1))
        self._progress = self._open.enter_context(TrainingProgress(cfg.name, cfg.optim.steps, show, "steps"))
        self._progress.skip(start)
        self._loggers = Loggers(cfg, self._files, start, self.print_line)
        self._open.callback(lambda: self._loggers.close(sys.exception()))
        if set_aside:
            self.print_line(f"{cfg.out} has no checkpoint, but metrics of an earlier run; they are kept as {set_aside}")

    def write(self, step: int, metrics: Metrics, wait_seconds: float = 0.0) -> None:
        """Takes the metrics of ``step`` and the seconds it waited for its batch; records those of the step before."""
        self.flush()
        self._pending = (step, metrics, wait_seconds)

    def add(self, values: dict[str, float]) -> None:
        """Adds ``values``, measured after the newest step, to its line."""
        self._measured = values

    def add_images(self, step: int, images: Mapping[str, Image.Image]) -> None:
        """Gives pictures made after ``step`` to the loggers."""
        for name, image in images.items() if self._writes else ():
            self._loggers.image(step, name, image)

    def flush(self) -> None:
        """Records the pending metrics. Raises what :meth:`Guards.judge` raises."""
        if self._pending is not None:
            (step, metrics, wait_seconds), self._pending = self._pending, None
            measured, self._measured = self._measured, {}
            self._record(step, _values(metrics) | measured, wait_seconds)

    def sync(self) -> None:
        """:meth:`flush`, then all to disk, as a mounted bucket keeps lines in memory until they are synced, or into the store."""
        self.flush()
        if self._writes:
            os.fsync(self._file.fileno())
            self._loggers.flush()
            self._files.upload()

    def print_line(self, line: str) -> None:
        """Prints a line above the progress, in process 0 of a run that shows any."""
        if self._writes:
            self._progress.print_line(f"{self._cfg.name}: {line}")

    def _record(self, step: int, values: dict[str, float], wait_seconds: float) -> None:
        skipped = not (np.isfinite(values["loss"]) and np.isfinite(values["grad_norm"]))
        if remark := self._guards.judge(step, values):
            self._events.add("skipped" if skipped else "spike", step, why=remark)
            self.print_line(f"step {step}: {remark}")
        self._tokens += values["tokens"] * (not skipped)
        self._wait_seconds += wait_seconds
        if not self._writes or (step % self._cfg.log_every and step != self._cfg.optim.steps and not skipped):
            return
        finite = {name: value for name, value in values.items() if np.isfinite(value)}
        self._file.write(json.dumps({"step": step, **finite, **({"skipped": 1} if skipped else {})}) + "\n")
        elapsed = max(time.monotonic() - self._start_time, 1e-9)
        speed, wait_share = self._tokens / elapsed, self._wait_seconds / elapsed
        if step % self._cfg.log.every == 0:
            speeds = {"learned_tokens_per_second": speed, "wait": wait_seconds}
            self._loggers.scalars(step, finite | speeds | pace_numbers(self._paces()))
        text = f"loss {values['loss']:.3f}  {speed:,.0f} learned tok/s  {wait_share:.1%} waiting for data"
        self._progress.advance(step - self._progress.done, text)

    def close(self) -> None:
        self._open.close()


def pace_numbers(paces: Mapping[str, Pace]) -> dict[str, float]:
    """Seconds of a step that each process works and reads by itself, by name of the curve: of the first processes, and the median
    and the most of all."""
    numbers = {}
    for field in ("own", "reading") if paces else ():
        seconds = {name: getattr(pace, field) for name, pace in sorted(paces.items(), key=_number)}
        curve = f"processes/{field}_seconds"
        numbers |= {f"{curve}_median": statistics.median(seconds.values()), f"{curve}_most": max(seconds.values())}
        first = islice(seconds.items(), PROCESS_CURVES)
        numbers |= {f"{curve}/{name.replace(' ', '_')}": value for name, value in first}
    return numbers


def _number(named: tuple[str, Pace]) -> list[int]:
    """The numbers in the name of a process, by which they are ordered."""
    return [int(digits) for digits in re.findall(r"\d+", named[0])]


def _values(metrics: Metrics) -> dict[str, float]:
    """The numbers of a step by name, those of ``norms`` among the others."""
    values = jax.device_get(metrics)._asdict()
    norms = values.pop("norms") or {}
    return {name: float(value) for name, value in (values | norms).items()}


def read_metrics(folder: Path | str) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, without a last line that a kill cut short; empty where there is no such file.

    ``folder`` is a path or a URL. Raises InputError for a file of another origin, and a damaged one.
    """
    files = StorageFolder(folder)
    content = files.read_bytes(FILE) if files.exists(FILE) else b""
    return [_parsed(line, f"{folder}/{FILE}") for line in content.split(b"\n")[:-1]]


def _parsed(line: bytes, path: str) -> dict[str, float]:
    with suppress(ValueError):
        values = json.loads(line)
        numbers = isinstance(values, dict) and all(isinstance(value, int | float) for value in values.values())
        if numbers and "step" in values and {"loss", "skipped"} & set(values):
            return values
    raise InputError(
        f"{path} has a line that run.py train did not write: {line[:80].decode(errors='replace')!r}; give another out=FOLDER, or "
        "move the file away"
    )

"""A run on the embedded world in one folder: its budget, the configs scaled to it, tokens, training, and the time taken."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lumina_jax.config import Experiment
from lumina_jax.data.pipeline import batches
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.errors import ExistingFileError, InputError
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.storage import atomic_write_text
from lumina_jax.toyworld.omni import training_source
from lumina_jax.train.loop import train
from lumina_jax.vocab import Vocab

FOLDERS = {
    "data64": ("toy", 40_000, 1),
    "data96": ("toy", 15_000, 2),
    "data128": ("toy", 50_000, 3),
    "tasks1": ("omni", 200_000, 4),
    "paint1": ("toy", 30_000, 5),
    "tasks2": ("omni_slow", 120_000, 6),
    "paint2": ("toy", 20_000, 7),
    "tasks3": ("omni_scripts", 160_000, 8),
    "paint3": ("toy", 40_000, 9),
    "tasks4": ("omni_questions", 50_000, 10),
    "tasks5": ("omni_weak", 64_000, 11),
}
"""Token folder -> (kind of :func:`training_source`, records at the reference budget, seed)."""


class TrainingRun:
    """Trains experiments in the folder ``out``; steps and records are those of ``reference_minutes``, scaled to ``minutes``.

    ``seconds`` are wall seconds by name, kept in ``out``/timings.json and summed over all runs that worked on the same name.
    Raises InputError when the folder holds a run of another budget, ExistingFileError when it holds something else.
    """

    def __init__(self, out: Path, minutes: float, reference_minutes: float):
        out.mkdir(parents=True, exist_ok=True)
        plan = out / "plan.json"
        others = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if others and not plan.is_file():
            raise ExistingFileError(
                f"{out} holds {others[0]}, which is of no quickstart; give another --out, or an empty folder"
            )
        if plan.is_file() and (planned := json.loads(plan.read_text())["minutes"]) != minutes:
            raise InputError(
                f"{out} holds a run of {planned:g} minutes, not {minutes:g}; give another --out, --minutes {planned:g} "
                "to see or finish that one, or delete the folder"
            )
        atomic_write_text(plan, json.dumps({"minutes": minutes}))
        self.out, self._minutes, self._reference_minutes = out, minutes, reference_minutes
        self._timings = out / "timings.json"
        self.seconds: dict[str, float] = json.loads(self._timings.read_text()) if self._timings.is_file() else {}

    def finished(self, last_file: str) -> bool:
        """Whether the folder has the last file of the run; says so if it has."""
        finished = (self.out / last_file).is_file()
        if finished:
            print(f"{self.out}: everything is done already; delete the folder to start again", flush=True)
        return finished

    def scaled(self, cfg: Experiment) -> Experiment:
        """``cfg`` with all its paths moved into the folder under their last names, and its steps scaled to the budget."""

        def moved(path: str) -> str:
            return str(self.out / Path(path).name) if path else ""

        steps = self._scale(cfg.optim.steps, at_least=20)
        return replace(
            cfg,
            out=moved(cfg.out),
            start=moved(cfg.start),
            vq=replace(cfg.vq, path=moved(cfg.vq.path)),
            data=replace(cfg.data, path=",".join(map(moved, cfg.data.paths)), tokenizer=str(self.out)),
            optim=replace(cfg.optim, steps=steps, warmup=min(cfg.optim.warmup, steps // 4)),
        )

    def record_count(self, path: str) -> int:
        """How many records the token folder ``path`` gets."""
        return self._scale(FOLDERS[Path(path).name][1], at_least=256)

    def _scale(self, count: int, at_least: int) -> int:
        return max(at_least, round(count * self._minutes / self._reference_minutes))

    def train(
        self, cfg: Experiment, name: str, content: str, vq: PatchVQ, vocab: Vocab, max_tokens: int | None = None
    ) -> float:
        """Writes the token folders of ``cfg``, trains on them, returns the seconds of training; ``content`` names the records."""
        with self.measure(f"{name}: {content} to tokens"):
            for path in cfg.data.paths:
                kind, _, seed = FOLDERS[Path(path).name]
                source = training_source(kind, cfg.data.size, self.record_count(path), seed)
                pretokenize(source, vq, vocab, path, cfg.data, cfg.seed, sizes=source.sizes, max_tokens=max_tokens)
        training = f"{name}: {cfg.optim.steps:,} training steps"
        with self.measure(training):
            train(cfg, lambda span: batches(cfg.data.path, cfg.data, vocab, cfg.seed, span.start, span.stop))
        return self.seconds[training]

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        print(name, flush=True)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
        atomic_write_text(self._timings, json.dumps(self.seconds, indent=2))

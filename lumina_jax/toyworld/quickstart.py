"""All of Lumina-mGPT in minutes: world, codebook, tokens, three progressive stages, guided samples, judge, report.

Every result is kept on disk and not made again, so an interrupted run resumes where it stopped, with bitwise equal results:
the amount of work depends on ``--minutes`` alone, not on the speed of the machine.
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from lumina_jax.config import Experiment, SampleConfig
from lumina_jax.data.pipeline import batches
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.errors import InputError
from lumina_jax.model.image_tokenizer import decode_image, encode_image
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.storage import atomic_write_text
from lumina_jax.toyworld.fit import fit_world
from lumina_jax.toyworld.report import JudgedSample, QuickstartReport, StageResult, SweepCell, write_report
from lumina_jax.toyworld.scenes import MINI, Pixels
from lumina_jax.toyworld.score import paint, score
from lumina_jax.toyworld.source import ToySource, captioned_scene, prompts, stage_sizes, training_sizes
from lumina_jax.train.checkpoint import newest, restore_model
from lumina_jax.train.loop import train
from lumina_jax.train.metrics import read_metrics
from lumina_jax.vocab import Vocab

REFERENCE_MINUTES = 12
"""The budget for which the step counts of the configs and SCENES are chosen."""

REPORT = "report.html"

SCENES = (40_000, 15_000, 50_000)
"""Training scenes of each stage at that budget; they scale with the minutes."""

PROMPTS = 128
"""Fresh prompts, and as many held-out ones, judged after each stage."""
SAMPLES, TRACKED, REBUILT = 24, 6, 8
"""Samples in the report, prompts painted after every stage, and pictures passed through the codebook."""
FRESH_SEED, TRACKED_SEED, TRAIN_SEED = 7, 11, 1


@dataclass(frozen=True)
class StageOutput:
    """The result of one stage, its samples of fresh prompts, and those of the tracked prompts."""

    result: StageResult
    samples: tuple[JudgedSample, ...]
    tracked: tuple[JudgedSample, ...]


def quickstart(stages: list[Experiment], out: Path, minutes: float, prompts_per_stage: int = PROMPTS) -> Path:
    """Runs everything in ``out`` and returns the path of report.html. Prints its progress and the scores.

    Raises InputError when ``out`` holds a run of another budget.
    """
    if open_run(out, minutes, REPORT):
        print(f"{out}: everything is done already; delete the folder to start again", flush=True)
        return out / REPORT
    timer = StageTimer(out)
    stages = [_scaled(cfg, number, out, minutes) for number, cfg in enumerate(stages)]
    with timer.measure("codebook and tokenizer"):
        vq, vocab = _codebook_and_tokenizer(out, stages[0])
    outputs = []
    for number, cfg in enumerate(stages):
        count = max(256, round(SCENES[number] * minutes / REFERENCE_MINUTES))
        outputs.append(_run_stage(cfg, number, count, vq, vocab, timer, prompts_per_stage))
        _print_scores(outputs[-1].result)
    with timer.measure("settings of sampling"):
        sweep = _sweep(stages[-1], vq, vocab)
    sizes = stage_sizes(stages[-1].data.size)
    unseen = [captioned_scene(MINI, sizes, FRESH_SEED, index)[0].render() for index in range(200)]
    rebuilt = [np.asarray(decode_image(vq, encode_image(vq, Image.fromarray(o)))) for o in unseen[:REBUILT]]
    report = QuickstartReport(
        title="Lumina-mGPT on the embedded world",
        minutes=minutes,
        stages=tuple(output.result for output in outputs),
        samples=outputs[-1].samples[:SAMPLES],
        progress=tuple(zip(*(output.tracked for output in outputs), strict=True)),
        sweep=sweep,
        originals=tuple(unseen[:REBUILT]),
        rebuilt=tuple(rebuilt),
        codebook=vq.report(unseen),
        timings=timer.timings(),
        command=f"python run.py quickstart --minutes {minutes:g}",
        machine=f"{os.cpu_count()} cores, {platform.machine()}, JAX {jax.__version__} on {jax.default_backend()}",
    )
    return write_report(report, out / REPORT)


def open_run(out: Path, minutes: float, last_file: str) -> bool:
    """Creates the run folder ``out`` or opens it again; returns whether the run is finished, that is, has its last file.

    Raises InputError when the folder holds a run of another budget.
    """
    out.mkdir(parents=True, exist_ok=True)
    plan = out / "plan.json"
    if plan.is_file() and (planned := json.loads(plan.read_text())["minutes"]) != minutes:
        raise InputError(
            f"{out} holds a run of {planned:g} minutes, not {minutes:g}; give another --out, --minutes {planned:g} "
            "to see or finish that one, or delete the folder"
        )
    atomic_write_text(plan, json.dumps({"minutes": minutes}))
    return (out / last_file).is_file()


def _scaled(cfg: Experiment, number: int, out: Path, minutes: float) -> Experiment:
    """The config of a stage with all its paths in ``out`` and its steps scaled to the budget."""
    steps = max(20, round(cfg.optim.steps * minutes / REFERENCE_MINUTES))
    return replace(
        cfg,
        out=str(out / f"stage{number + 1}"),
        start=str(out / f"stage{number}") if number else "",
        vq=replace(cfg.vq, path=str(out / "vq.npz")),
        data=replace(cfg.data, path=str(out / f"data{cfg.data.size}"), tokenizer=str(out)),
        optim=replace(cfg.optim, steps=steps, warmup=min(cfg.optim.warmup, steps // 4)),
    )


def _codebook_and_tokenizer(out: Path, cfg: Experiment) -> tuple[PatchVQ, Vocab]:
    """The codebook of all stages and its tokenizer, fitted unless they exist."""
    if not (out / "tokenizer.json").is_file():
        fit_world(cfg.vq, cfg.data)
    vocab = Vocab.load(out)
    vocab.check_fits(cfg.model.vocab)
    return PatchVQ.load(out / "vq.npz"), vocab


def _run_stage(
    cfg: Experiment, number: int, count: int, vq: PatchVQ, vocab: Vocab, timer: "StageTimer", prompt_count: int
) -> StageOutput:
    """Pretokenizes, trains and judges one stage."""
    sizes, name = stage_sizes(cfg.data.size), f"stage {number + 1}"
    with timer.measure(f"{name}: {count:,} scenes to tokens"):
        source = ToySource(MINI, training_sizes(cfg.data.size), count, TRAIN_SEED + number)
        pretokenize(source, vq, vocab, cfg.data.path, cfg.data, cfg.seed, sizes=source.sizes)
    training = f"{name}: {cfg.optim.steps:,} training steps"
    with timer.measure(training):
        train_on_tokens(cfg, vocab)
    with timer.measure(f"{name}: {2 * prompt_count} prompts painted and judged"):
        return _judge_stage(cfg, name, sizes, vq, vocab, prompt_count, timer.seconds(training))


def train_on_tokens(cfg: Experiment, vocab: Vocab) -> None:
    """Trains ``cfg`` on its token folders."""
    train(cfg, lambda start: batches(cfg.data.path, cfg.data, vocab, cfg.seed, start, cfg.optim.steps))


def _judge_stage(
    cfg: Experiment, name: str, sizes: list[Pixels], vq: PatchVQ, vocab: Vocab, count: int, seconds: float
) -> StageOutput:
    model = restore_model(newest(cfg.out), cfg.model)
    square = (cfg.data.size, cfg.data.size)
    fresh = prompts(MINI, sizes, count, FRESH_SEED)
    held_out = prompts(MINI, sizes, count, FRESH_SEED, held_out=True)
    tracked = [(caption, square) for caption, _ in prompts(MINI, [(128, 128)], TRACKED, TRACKED_SEED)]
    samples = paint(model, vq, vocab, fresh + held_out + tracked, cfg.sample, jax.random.key(cfg.seed))
    lines = read_metrics(cfg.out)
    result = StageResult(
        name=name,
        size=cfg.data.size,
        steps=cfg.optim.steps,
        tokens=round(sum(line["tokens"] for line in lines)),
        canvases=tuple(sizes),
        losses=tuple((line["step"], line["xent"]) for line in lines),
        fresh=score(samples[:count]),
        held_out=score(samples[count : 2 * count]),
        seconds=seconds,
    )
    return StageOutput(result, tuple(samples[:count]), tuple(samples[2 * count :]))


def _sweep(cfg: Experiment, vq: PatchVQ, vocab: Vocab) -> tuple[SweepCell, ...]:
    """The same prompts under different sampling settings (the paper's Figure 8)."""
    model = restore_model(newest(cfg.out), cfg.model)
    captions = [(caption, (128, 128)) for caption, _ in prompts(MINI, [(128, 128)], 4, TRACKED_SEED + 1)]
    cells = []
    for guidance in (1.0, 3.0, 7.0):
        for temperature, top_k in ((1.0, 1), (1.0, 50), (1.0, 2000), (1.5, 2000)):
            settings = SampleConfig(guidance=guidance, temperature=temperature, image_top_k=top_k)
            samples = paint(model, vq, vocab, captions, settings, jax.random.key(cfg.seed))
            cells.append(SweepCell(guidance, temperature, top_k, tuple(samples)))
    return tuple(cells)


def _print_scores(result: StageResult) -> None:
    print(
        f"{result.name} ({result.size}x{result.size} px): every fact right {result.fresh.all_right:.1%}, "
        f"size obeyed {result.fresh.size_obeyed:.1%}, held-out compositions right {result.held_out.all_right:.1%} "
        f"({result.fresh.count} prompts each)",
        flush=True,
    )


class StageTimer:
    """Wall seconds by name, kept in ``out``/timings.json and summed over all runs that worked on the same name."""

    def __init__(self, out: Path):
        self._file = out / "timings.json"
        self._seconds = json.loads(self._file.read_text()) if self._file.is_file() else {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        print(name, flush=True)
        yield
        self._seconds[name] = self.seconds(name) + time.monotonic() - start
        atomic_write_text(self._file, json.dumps(self._seconds, indent=2))

    def seconds(self, name: str) -> float:
        return self._seconds.get(name, 0.0)

    def timings(self) -> tuple[tuple[str, float], ...]:
        return tuple(self._seconds.items())

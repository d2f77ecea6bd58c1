"""All of Lumina-mGPT in minutes: world, codebook, tokens, three progressive stages, guided samples, judge, report; then Omni-SFT.

Every result is kept on disk and not made again, so an interrupted run resumes where it stopped, with bitwise equal results:
the amount of work depends on the budget in minutes alone, not on the speed of the machine.
"""

import os
import platform
from itertools import product
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from lumina_jax.config import Experiment, SampleConfig
from lumina_jax.model.image_tokenizer import decode_image, encode_image
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.toyworld.fit import fit_omni, fit_world
from lumina_jax.toyworld.report import JudgedSample, QuickstartReport, StageResult, SweepCell, write_report
from lumina_jax.toyworld.scenes import MINI
from lumina_jax.toyworld.source import STAGES, captioned_scene, prompts, stage_sizes
from lumina_jax.toyworld.task_sheet import print_each, write_sheets
from lumina_jax.toyworld.tasks import evaluate_tasks, paint, score_samples, score_table
from lumina_jax.toyworld.training_run import TrainingRun
from lumina_jax.train.checkpoint import newest, read_experiment, restore_model
from lumina_jax.train.grow_vocabulary import write_start_checkpoint
from lumina_jax.train.metrics import read_metrics
from lumina_jax.vocab import Vocab

REFERENCE_MINUTES, OMNI_REFERENCE_MINUTES = 12, 100
"""The budgets for which the step counts of the configs and the records of training_run.FOLDERS are chosen."""

REPORT, SHEET = "report.html", "tasks.html"

PROMPTS = 128
"""Fresh prompts, and as many held-out ones, judged after each stage, and before and after Omni-SFT on each area."""
EXERCISES = 96
SAMPLES, TRACKED, REBUILT = 24, 6, 8
"""Samples in the report, prompts painted after every stage, and pictures passed through the codebook."""
FRESH_SEED, TRACKED_SEED = 7, 11


def quickstart(stages: list[Experiment], out: Path, minutes: float, prompts_per_stage: int = PROMPTS) -> Path:
    """Runs everything in ``out`` and returns the path of report.html. Prints its progress and the scores.

    Raises InputError when ``out`` holds a run of another budget.
    """
    run = TrainingRun(out, minutes, REFERENCE_MINUTES)
    if run.finished(REPORT):
        return out / REPORT
    stages = [run.scaled(cfg) for cfg in stages]
    with run.measure("codebook and tokenizer"):
        vq, vocab = _prepare(stages[0], out)
    results, samples = [], []
    for number, cfg in enumerate(stages, start=1):
        name, count = f"stage {number}", run.record_count(cfg.data.path)
        seconds = run.train(cfg, name, f"{count:,} scenes", vq, vocab)
        with run.measure(f"{name}: {2 * prompts_per_stage} prompts painted and judged"):
            result, painted = _judge_stage(cfg, name, vq, vocab, prompts_per_stage, seconds)
        results.append(result)
        samples.append(painted)
    with run.measure("settings of sampling"):
        sweep = _sweep(stages[-1], vq, vocab)
    sizes = stage_sizes(stages[-1].data.size)
    unseen = [captioned_scene(MINI, sizes, FRESH_SEED, index)[0].render() for index in range(200)]
    rebuilt = (decode_image(vq, encode_image(vq, Image.fromarray(picture))) for picture in unseen[:REBUILT])
    report = QuickstartReport(
        title="Lumina-mGPT on the embedded world",
        minutes=minutes,
        stages=tuple(results),
        samples=tuple(samples[-1][: min(SAMPLES, prompts_per_stage)]),
        progress=tuple(zip(*(painted[2 * prompts_per_stage :] for painted in samples), strict=True)),
        sweep=sweep,
        originals=tuple(unseen[:REBUILT]),
        rebuilt=tuple(map(np.asarray, rebuilt)),
        codebook=vq.report(unseen),
        timings=tuple(run.seconds.items()),
        command=f"python run.py quickstart --minutes {minutes:g}",
        machine=f"{os.cpu_count()} cores, {platform.machine()}, JAX {jax.__version__} on {jax.default_backend()}",
    )
    return write_report(report, out / REPORT)


def _prepare(cfg: Experiment, out: Path) -> tuple[PatchVQ, Vocab]:
    """The codebook of all stages and its tokenizer, fitted unless they exist."""
    if not (out / "tokenizer.json").is_file():
        fit_world(cfg.vq, cfg.data)
    vocab = Vocab.load(out)
    vocab.check_fits(cfg.model.vocab)
    return PatchVQ.load(out / "vq.npz"), vocab


def _judge_stage(
    cfg: Experiment, name: str, vq: PatchVQ, vocab: Vocab, count: int, seconds: float
) -> tuple[StageResult, list[JudgedSample]]:
    """Prints and returns the scores of a stage; its samples are of ``count`` fresh, ``count`` held-out and the tracked prompts."""
    sizes, square = stage_sizes(cfg.data.size), (cfg.data.size, cfg.data.size)
    fresh = prompts(MINI, sizes, count, FRESH_SEED)
    held_out = prompts(MINI, sizes, count, FRESH_SEED, held_out=True)
    tracked = [(caption, square) for caption, _ in prompts(MINI, [(128, 128)], TRACKED, TRACKED_SEED)]
    model = restore_model(newest(cfg.out), cfg.model)
    samples = paint(model, vq, vocab, fresh + held_out + tracked, cfg.sample, jax.random.key(cfg.seed))
    lines = read_metrics(cfg.out)
    result = StageResult(
        name=name,
        size=cfg.data.size,
        steps=cfg.optim.steps,
        tokens=round(sum(line["tokens"] for line in lines)),
        canvases=tuple(sizes),
        losses=tuple((line["step"], line["xent"]) for line in lines if "xent" in line),
        fresh=score_samples(samples[:count]),
        held_out=score_samples(samples[count : 2 * count]),
        seconds=seconds,
    )
    print(
        f"{name} ({result.size}x{result.size} px): every fact right {result.fresh.all_right:.1%}, "
        f"size obeyed {result.fresh.size_obeyed:.1%}, held-out compositions right {result.held_out.all_right:.1%} "
        f"({count} prompts each)",
        flush=True,
    )
    return result, samples


def _sweep(cfg: Experiment, vq: PatchVQ, vocab: Vocab) -> tuple[SweepCell, ...]:
    """The same prompts under different sampling settings (the paper's Figure 8)."""
    model = restore_model(newest(cfg.out), cfg.model)
    captions = prompts(MINI, [(128, 128)], 4, TRACKED_SEED + 1)
    cells = []
    for guidance, (temperature, top_k) in product((1.0, 3.0, 7.0), ((1.0, 1), (1.0, 50), (1.0, 2000), (1.5, 2000))):
        settings = SampleConfig(guidance=guidance, temperature=temperature, image_top_k=top_k)
        samples = paint(model, vq, vocab, captions, settings, jax.random.key(cfg.seed))
        cells.append(SweepCell(guidance, temperature, top_k, tuple(samples)))
    return tuple(cells)


def omni_quickstart(parts: list[Experiment], out: Path, minutes: float, exercises: int = EXERCISES) -> Path:
    """Trains one model for every task in ``out``/omni: ``parts`` in turn, from the last stage of the quickstart in ``out``.

    Returns the path of the sheet of all tasks. Raises InputError when ``out``/omni holds a run of another budget,
    MissingFileError when ``out`` holds no quickstart.
    """
    base = newest(out / "stage3")
    run = TrainingRun(out / "omni", minutes, OMNI_REFERENCE_MINUTES)
    if run.finished(SHEET):
        return run.out / SHEET
    parts = [run.scaled(cfg) for cfg in parts]
    last = parts[-1]
    with run.measure("codebook, tokenizer and larger model"):
        vq, vocab = _prepare_omni(parts[0], out, base)
    for cfg in parts:
        run.train(cfg, cfg.name, "records", vq, vocab, max_tokens=cfg.data.buckets[-1] + 1)
    with run.measure(f"text to image before and after, and {exercises} exercises of each task"):
        tables = {"before": _text_to_image(base, out), "after": _text_to_image(newest(last.out), run.out)}
        model = restore_model(newest(last.out), last.model)
        sizes = stage_sizes(STAGES[0])
        results = print_each(evaluate_tasks(model, vq, vocab, last.sample, sizes, exercises, 0))
    return write_sheets(results, run.out, text_to_image=tables, seconds=run.seconds)


def _prepare_omni(cfg: Experiment, out: Path, base: Path) -> tuple[PatchVQ, Vocab]:
    """Writes codebook, tokenizer and, from the checkpoint ``base``, start weights for all tasks, unless they exist."""
    if not Path(cfg.data.tokenizer, "tokenizer.json").is_file():
        fit_omni(cfg.vq, cfg.data, PatchVQ.load(out / "vq.npz"))
    vocab = Vocab.load(cfg.data.tokenizer)
    if not Path(cfg.out).exists():
        write_start_checkpoint(restore_model(base, read_experiment(base).model), Vocab.load(out), vocab, cfg)
    return PatchVQ.load(cfg.vq.path), vocab


def _text_to_image(checkpoint: Path, home: Path) -> dict[str, dict]:
    """Scores of a checkpoint on MINI's prompts, on the canvases of each stage."""
    cfg = read_experiment(checkpoint)
    model, vq, vocab = restore_model(checkpoint, cfg.model), PatchVQ.load(home / "vq.npz"), Vocab.load(home)
    return {str(area): score_table(model, vq, vocab, cfg.sample, area, PROMPTS, 0) for area in STAGES}

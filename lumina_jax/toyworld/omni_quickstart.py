"""Omni-SFT of the embedded world: from a finished quickstart's weights to one model for every task, measured.

Like the quickstart it leaves each part on disk, goes on where it stopped, and derives its work from its minutes alone.
"""

from dataclasses import replace
from pathlib import Path

from lumina_jax.config import Experiment
from lumina_jax.data.pipeline import batches
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.toyworld.grow import write_start
from lumina_jax.toyworld.omni import OmniSource, omni_sizes
from lumina_jax.toyworld.omni_fit import fit_omni
from lumina_jax.toyworld.quickstart import TRAIN_SEED, Clock, claim
from lumina_jax.toyworld.scenes import MINI, OMNI
from lumina_jax.toyworld.score import score_table
from lumina_jax.toyworld.source import STAGES, ToySource, stage_sizes, training_sizes
from lumina_jax.toyworld.task_sheet import line, write_sheets
from lumina_jax.toyworld.tasks import evaluate_tasks
from lumina_jax.train.checkpoint import newest, read_experiment, restore_model
from lumina_jax.train.loop import train
from lumina_jax.vocab import Vocab

REFERENCE_MINUTES = 30
"""The budget that the steps of the config and RECORDS are made for."""

RECORDS = 200_000
"""Records of tasks at that budget; a tenth as many are FP-SFT's own."""

EXERCISES = 96
PROMPTS = 128
SHEET = "tasks.html"
LAST_STAGE = "stage3"


def omni_quickstart(cfg: Experiment, out: Path, minutes: float, exercises: int = EXERCISES) -> Path:
    """Trains ``cfg`` in ``out``/omni, from the last stage of the quickstart in ``out``; returns the path of its sheet.

    Raises ValueError when ``out``/omni holds a run of another budget, FileNotFoundError when ``out`` holds no quickstart.
    """
    home = out / "omni"
    base = newest(out / LAST_STAGE)
    if claim(home, minutes, SHEET):
        print(f"{home}: everything is done already; delete the folder to start again", flush=True)
        return home / SHEET
    clock, cfg = Clock(home), _scaled(cfg, home, minutes)
    with clock.part("codebook, tokenizer and larger model"):
        vq, vocab = _begin(cfg, out, base)
    count = max(256, round(RECORDS * minutes / REFERENCE_MINUTES))
    with clock.part(f"{count:,} records of all tasks, and a tenth as many of FP-SFT, to tokens"):
        _tokens(cfg, count, vq, vocab)

    def local(start: int):
        return batches(cfg.data.path, cfg.data, vocab, cfg.seed, start, cfg.optim.steps)

    with clock.part(f"{cfg.optim.steps:,} training steps"):
        train(cfg, local)
    with clock.part(f"text to image before and after, and {exercises} exercises of each task"):
        painted = {"before": _painted(base, out), "after": _painted(newest(cfg.out), home)}
        results = list(_results(cfg, vq, vocab, exercises))
    return write_sheets(results, home, text_to_image=painted, seconds=dict(clock.timings()))


def _scaled(cfg: Experiment, home: Path, minutes: float) -> Experiment:
    """``cfg`` with its folders in ``home`` and its steps for the budget."""
    steps = max(20, round(cfg.optim.steps * minutes / REFERENCE_MINUTES))
    return replace(
        cfg,
        out=str(home / "run"),
        start=str(home / "start"),
        vq=replace(cfg.vq, path=str(home / "vq.npz")),
        data=replace(cfg.data, path=f"{home / 'tasks'},{home / 'paint'}", tokenizer=str(home)),
        optim=replace(cfg.optim, steps=steps, warmup=min(cfg.optim.warmup, steps // 4)),
    )


def _begin(cfg: Experiment, out: Path, base: Path) -> tuple[PatchVQ, Vocab]:
    """Codebook and tokenizer for all tasks, and the weights of the checkpoint ``base`` grown for them."""
    if not Path(cfg.data.tokenizer, "tokenizer.json").is_file():
        fit_omni(cfg.vq, cfg.data, PatchVQ.load(out / "vq.npz"))
    vocab = Vocab.load(cfg.data.tokenizer)
    if not Path(cfg.out).exists():
        write_start(restore_model(base, read_experiment(base).model), Vocab.load(out), vocab, cfg)
    return PatchVQ.load(cfg.vq.path), vocab


def _tokens(cfg: Experiment, count: int, vq: PatchVQ, vocab: Vocab) -> None:
    sources = (
        OmniSource(OMNI, omni_sizes(cfg.data.size), count, TRAIN_SEED + 3),
        ToySource(MINI, training_sizes(cfg.data.size), count // 10, TRAIN_SEED + 4),
    )
    most = cfg.data.buckets[-1] + 1
    for source, path in zip(sources, cfg.data.paths, strict=True):
        pretokenize(source, vq, vocab, path, cfg.data, cfg.seed, sizes=source.sizes, max_tokens=most)


def _painted(checkpoint: Path, home: Path) -> dict[str, dict]:
    """How well a checkpoint paints MINI's prompts, on the canvases of each stage."""
    cfg = read_experiment(checkpoint)
    model, vq, vocab = restore_model(checkpoint, cfg.model), PatchVQ.load(home / "vq.npz"), Vocab.load(home)
    return {str(area): score_table(model, vq, vocab, cfg.sample, area, PROMPTS, 0) for area in STAGES}


def _results(cfg: Experiment, vq: PatchVQ, vocab: Vocab, exercises: int):
    model = restore_model(newest(cfg.out), cfg.model)
    for result in evaluate_tasks(model, vq, vocab, cfg.sample, stage_sizes(STAGES[0]), exercises, 0):
        print(f"{result.task}: {line(result.mean)}", flush=True)
        yield result

"""Omni-SFT of the embedded world: trains and evaluates one model for every task, from a finished quickstart's weights.

Like the quickstart it keeps every result on disk, resumes where it stopped, and does an amount of work that depends on
``minutes`` alone.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lumina_jax.config import Experiment
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.toyworld.omni import LESSONS, OmniSource
from lumina_jax.toyworld.omni_fit import fit_omni
from lumina_jax.toyworld.quickstart import StageTimer, open_run, train_on_tokens
from lumina_jax.toyworld.scenes import MINI, OMNI
from lumina_jax.toyworld.score import score_table
from lumina_jax.toyworld.source import STAGES, ToySource, stage_sizes, training_sizes
from lumina_jax.toyworld.task_sheet import line, write_sheets
from lumina_jax.toyworld.tasks import TaskResult, evaluate_tasks
from lumina_jax.train.checkpoint import newest, read_experiment, restore_model
from lumina_jax.train.grow_vocabulary import write_start_checkpoint
from lumina_jax.vocab import Vocab

REFERENCE_MINUTES = 40
"""The budget for which the steps of the configs and the records of FOLDERS are chosen."""

FOLDERS = {
    "tasks1": ("omni", 200_000, 4),
    "paint1": ("", 30_000, 5),
    "tasks2": ("omni_slow", 120_000, 6),
    "paint2": ("", 20_000, 7),
}
"""Token folder -> (name in LESSONS, or "" for the text-to-image data of the quickstart; records at that budget; seed)."""

EXERCISES = 96
PROMPTS = 128
SHEET = "tasks.html"
LAST_STAGE = "stage3"


def omni_quickstart(parts: list[Experiment], out: Path, minutes: float, exercises: int = EXERCISES) -> Path:
    """Trains ``parts``, one after another, in ``out``/omni, from the last stage of the quickstart in ``out``.

    Returns the path of the sheet of all tasks. Raises InputError when ``out``/omni holds a run of another budget,
    MissingFileError when ``out`` holds no quickstart.
    """
    home, base = out / "omni", newest(out / LAST_STAGE)
    if open_run(home, minutes, SHEET):
        print(f"{home}: everything is done already; delete the folder to start again", flush=True)
        return home / SHEET
    timer = StageTimer(home)
    parts = [_scaled(cfg, home, minutes) for cfg in parts]
    with timer.measure("codebook, tokenizer and larger model"):
        vq, vocab = _prepare(parts[0], out, base)
    for cfg in parts:
        with timer.measure(f"{cfg.name}: records to tokens"):
            _pretokenize(cfg, minutes, vq, vocab)
        with timer.measure(f"{cfg.name}: {cfg.optim.steps:,} training steps"):
            train_on_tokens(cfg, vocab)
    with timer.measure(f"text to image before and after, and {exercises} exercises of each task"):
        tables = {"before": _text_to_image(base, out), "after": _text_to_image(newest(parts[-1].out), home)}
        results = list(_evaluate(parts[-1], vq, vocab, exercises))
    return write_sheets(results, home, text_to_image=tables, seconds=dict(timer.timings()))


def _scaled(cfg: Experiment, home: Path, minutes: float) -> Experiment:
    """``cfg`` with all its paths moved into ``home`` under their last names, and its steps scaled to the budget."""

    def moved(path: str) -> str:
        return str(home / Path(path).name)

    steps = max(20, round(cfg.optim.steps * minutes / REFERENCE_MINUTES))
    paths = ",".join(map(moved, cfg.data.paths))
    return replace(
        cfg,
        out=moved(cfg.out),
        start=moved(cfg.start),
        vq=replace(cfg.vq, path=moved(cfg.vq.path)),
        data=replace(cfg.data, path=paths, tokenizer=str(home)),
        optim=replace(cfg.optim, steps=steps, warmup=min(cfg.optim.warmup, steps // 4)),
    )


def _prepare(cfg: Experiment, out: Path, base: Path) -> tuple[PatchVQ, Vocab]:
    """Writes codebook, tokenizer and, from the checkpoint ``base``, start weights for all tasks, unless they exist."""
    if not Path(cfg.data.tokenizer, "tokenizer.json").is_file():
        fit_omni(cfg.vq, cfg.data, PatchVQ.load(out / "vq.npz"))
    vocab = Vocab.load(cfg.data.tokenizer)
    if not Path(cfg.out).exists():
        write_start_checkpoint(restore_model(base, read_experiment(base).model), Vocab.load(out), vocab, cfg)
    return PatchVQ.load(cfg.vq.path), vocab


def _pretokenize(cfg: Experiment, minutes: float, vq: PatchVQ, vocab: Vocab) -> None:
    """Writes the token folders of ``cfg`` that do not exist yet."""
    size, max_tokens = cfg.data.size, cfg.data.buckets[-1] + 1
    for path in cfg.data.paths:
        lesson, records, seed = FOLDERS[Path(path).name]
        count = max(256, round(records * minutes / REFERENCE_MINUTES))
        if lesson:
            source = OmniSource(OMNI, LESSONS[lesson].sizes(size), count, seed, LESSONS[lesson].mix)
        else:
            source = ToySource(MINI, training_sizes(size), count, seed)
        pretokenize(source, vq, vocab, path, cfg.data, cfg.seed, sizes=source.sizes, max_tokens=max_tokens)


def _text_to_image(checkpoint: Path, home: Path) -> dict[str, dict]:
    """Scores of a checkpoint on MINI's prompts, on the canvases of each stage."""
    cfg = read_experiment(checkpoint)
    model, vq, vocab = restore_model(checkpoint, cfg.model), PatchVQ.load(home / "vq.npz"), Vocab.load(home)
    return {str(area): score_table(model, vq, vocab, cfg.sample, area, PROMPTS, 0) for area in STAGES}


def _evaluate(cfg: Experiment, vq: PatchVQ, vocab: Vocab, exercises: int) -> Iterator[TaskResult]:
    """Evaluates the last checkpoint on every task and prints the scores of each."""
    model = restore_model(newest(cfg.out), cfg.model)
    for result in evaluate_tasks(model, vq, vocab, cfg.sample, stage_sizes(STAGES[0]), exercises, 0):
        print(f"{result.task}: {line(result.mean)}", flush=True)
        yield result

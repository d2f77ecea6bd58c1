"""Omni-SFT of the embedded world: from a finished quickstart's weights to one model for every task, measured.

Like the quickstart it leaves each part on disk, goes on where it stopped, and derives its work from its minutes alone.
"""

from dataclasses import replace
from pathlib import Path

from lumina_jax.config import Experiment
from lumina_jax.data.pipeline import batches
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.toyworld.omni import LESSONS, OmniSource
from lumina_jax.toyworld.omni_fit import fit_omni
from lumina_jax.toyworld.quickstart import Clock, claim
from lumina_jax.toyworld.scenes import MINI, OMNI
from lumina_jax.toyworld.score import score_table
from lumina_jax.toyworld.source import STAGES, ToySource, stage_sizes, training_sizes
from lumina_jax.toyworld.task_sheet import line, write_sheets
from lumina_jax.toyworld.tasks import evaluate_tasks
from lumina_jax.train.checkpoint import newest, read_experiment, restore_model
from lumina_jax.train.grow_vocabulary import write_start_checkpoint
from lumina_jax.train.loop import train
from lumina_jax.vocab import Vocab

REFERENCE_MINUTES = 40
"""The budget that the steps of the configs and RECORDS are made for."""

FOLDERS = {
    "tasks1": ("omni", 200_000, 4),
    "paint1": ("", 30_000, 5),
    "tasks2": ("omni_slow", 120_000, 6),
    "paint2": ("", 20_000, 7),
}
"""What the folders of tokens hold, by name: one of LESSONS or, without, FP-SFT's own; records at that budget; their seed."""

EXERCISES = 96
PROMPTS = 128
SHEET = "tasks.html"
LAST_STAGE = "stage3"


def omni_quickstart(parts: list[Experiment], out: Path, minutes: float, exercises: int = EXERCISES) -> Path:
    """Trains ``parts``, one after another, in ``out``/omni, from the last stage of the quickstart in ``out``.

    Returns the path of the sheet of all tasks. Raises ValueError when ``out``/omni holds a run of another budget,
    FileNotFoundError when ``out`` holds no quickstart.
    """
    home, base = out / "omni", newest(out / LAST_STAGE)
    if claim(home, minutes, SHEET):
        print(f"{home}: everything is done already; delete the folder to start again", flush=True)
        return home / SHEET
    clock = Clock(home)
    parts = [_scaled(part, home, minutes) for part in parts]
    with clock.part("codebook, tokenizer and larger model"):
        vq, vocab = _begin(parts[0], out, base)
    for part in parts:
        with clock.part(f"{part.name}: records to tokens"):
            _tokens(part, minutes, vq, vocab)
        with clock.part(f"{part.name}: {part.optim.steps:,} training steps"):
            _train(part, vocab)
    with clock.part(f"text to image before and after, and {exercises} exercises of each task"):
        painted = {"before": _painted(base, out), "after": _painted(newest(parts[-1].out), home)}
        results = list(_results(parts[-1], vq, vocab, exercises))
    return write_sheets(results, home, text_to_image=painted, seconds=dict(clock.timings()))


def _scaled(part: Experiment, home: Path, minutes: float) -> Experiment:
    """``part`` with its folders, by their own names, in ``home``, and its steps for the budget."""

    def place(path: str) -> str:
        return str(home / Path(path).name)

    steps = max(20, round(part.optim.steps * minutes / REFERENCE_MINUTES))
    paths = ",".join(map(place, part.data.paths))
    return replace(
        part,
        out=place(part.out),
        start=place(part.start),
        vq=replace(part.vq, path=place(part.vq.path)),
        data=replace(part.data, path=paths, tokenizer=str(home)),
        optim=replace(part.optim, steps=steps, warmup=min(part.optim.warmup, steps // 4)),
    )


def _begin(part: Experiment, out: Path, base: Path) -> tuple[PatchVQ, Vocab]:
    """Codebook and tokenizer for all tasks, and the weights of the checkpoint ``base`` grown for them."""
    if not Path(part.data.tokenizer, "tokenizer.json").is_file():
        fit_omni(part.vq, part.data, PatchVQ.load(out / "vq.npz"))
    vocab = Vocab.load(part.data.tokenizer)
    if not Path(part.out).exists():
        write_start_checkpoint(restore_model(base, read_experiment(base).model), Vocab.load(out), vocab, part)
    return PatchVQ.load(part.vq.path), vocab


def _tokens(part: Experiment, minutes: float, vq: PatchVQ, vocab: Vocab) -> None:
    """Makes those folders of tokens that are not there yet."""
    size, most = part.data.size, part.data.buckets[-1] + 1
    for path in part.data.paths:
        lesson, records, seed = FOLDERS[Path(path).name]
        count = max(256, round(records * minutes / REFERENCE_MINUTES))
        if lesson:
            source = OmniSource(OMNI, LESSONS[lesson].sizes(size), count, seed, LESSONS[lesson].mix)
        else:
            source = ToySource(MINI, training_sizes(size), count, seed)
        pretokenize(source, vq, vocab, path, part.data, part.seed, sizes=source.sizes, max_tokens=most)


def _train(part: Experiment, vocab: Vocab) -> None:
    def local(start: int):
        return batches(part.data.path, part.data, vocab, part.seed, start, part.optim.steps)

    train(part, local)


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

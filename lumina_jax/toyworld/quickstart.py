"""The whole of Lumina-mGPT in minutes: world, codebook, tokens, three progressive stages, guided samples, judge, report.

Every part leaves its result on disk and is skipped when it is there, so a second run goes on where the first stopped, and
ends in the same bits: the amount of work follows from ``--minutes`` alone, never from how fast the machine was.
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
from lumina_jax.toyworld.report import Knob, Painted, Report, Stage, write_report
from lumina_jax.toyworld.scenes import MINI, Pixels
from lumina_jax.toyworld.score import paint, score
from lumina_jax.toyworld.source import ToySource, captioned, prompts, stage_sizes, training_sizes
from lumina_jax.train.checkpoint import newest, restore_model
from lumina_jax.train.loop import train
from lumina_jax.train.metrics import read_metrics
from lumina_jax.vocab import Vocab

REFERENCE_MINUTES = 12
"""The budget that the step counts of the configs and SCENES are made for."""

REPORT = "report.html"

SCENES = (40_000, 15_000, 50_000)
"""Scenes of each stage at that budget; more minutes see more scenes."""

PROMPTS = 128
SHOWN = 24
FOLLOWED = 6
REBUILT = 8
FRESH_SEED, FOLLOWED_SEED, TRAIN_SEED = 7, 11, 1


@dataclass(frozen=True)
class Part:
    """What one stage left behind, besides its checkpoints."""

    stage: Stage
    samples: tuple[Painted, ...]
    followed: tuple[Painted, ...]


def quickstart(stages: list[Experiment], out: Path, minutes: float, prompts_per_stage: int = PROMPTS) -> Path:
    """Runs everything in ``out`` and returns the path of report.html. Prints what it does and the scores.

    Raises ValueError when ``out`` holds a run of another budget.
    """
    if claim(out, minutes, REPORT):
        print(f"{out}: everything is done already; delete the folder to start again", flush=True)
        return out / REPORT
    clock = Clock(out)
    stages = [_scaled(stage, number, out, minutes) for number, stage in enumerate(stages)]
    with clock.part("codebook and tokenizer"):
        vq, vocab = _alphabet(out, stages[0])
    parts = []
    for number, stage in enumerate(stages):
        count = max(256, round(SCENES[number] * minutes / REFERENCE_MINUTES))
        parts.append(_stage(stage, number, count, vq, vocab, clock, prompts_per_stage))
        _tell(parts[-1].stage)
    with clock.part("settings of sampling"):
        knobs = _knobs(stages[-1], vq, vocab)
    unseen = [captioned(MINI, stage_sizes(stages[-1].data.size), FRESH_SEED, index)[0].render() for index in range(200)]
    rebuilt = [np.asarray(decode_image(vq, encode_image(vq, Image.fromarray(o)))) for o in unseen[:REBUILT]]
    report = Report(
        title="Lumina-mGPT on the embedded world",
        minutes=minutes,
        stages=tuple(part.stage for part in parts),
        samples=parts[-1].samples[:SHOWN],
        progress=tuple(zip(*(part.followed for part in parts), strict=True)),
        knobs=knobs,
        originals=tuple(unseen[:REBUILT]),
        rebuilt=tuple(rebuilt),
        codebook=vq.report(unseen),
        timings=clock.timings(),
        command=f"python run.py quickstart --minutes {minutes:g}",
        machine=f"{os.cpu_count()} cores, {platform.machine()}, JAX {jax.__version__} on {jax.default_backend()}",
    )
    return write_report(report, out / REPORT)


def claim(out: Path, minutes: float, last: str) -> bool:
    """Whether ``out`` is finished, its ``last`` file there; takes it for this budget if it is new."""
    out.mkdir(parents=True, exist_ok=True)
    plan = out / "plan.json"
    if plan.is_file() and (there := json.loads(plan.read_text())["minutes"]) != minutes:
        raise InputError(
            f"{out} holds a run of {there:g} minutes, not {minutes:g}; give another --out, --minutes {there:g} "
            "to see or finish that one, or delete the folder"
        )
    atomic_write_text(plan, json.dumps({"minutes": minutes}))
    return (out / last).is_file()


def _scaled(stage: Experiment, number: int, out: Path, minutes: float) -> Experiment:
    """A stage with its folders in ``out`` and its steps for the budget."""
    steps = max(20, round(stage.optim.steps * minutes / REFERENCE_MINUTES))
    return replace(
        stage,
        out=str(out / f"stage{number + 1}"),
        start=str(out / f"stage{number}") if number else "",
        vq=replace(stage.vq, path=str(out / "vq.npz")),
        data=replace(stage.data, path=str(out / f"data{stage.data.size}"), tokenizer=str(out)),
        optim=replace(stage.optim, steps=steps, warmup=min(stage.optim.warmup, steps // 4)),
    )


def _alphabet(out: Path, stage: Experiment) -> tuple[PatchVQ, Vocab]:
    """One codebook for the pictures of all stages, and the tokenizer that names its codes."""
    if not (out / "tokenizer.json").is_file():
        fit_world(stage.vq, stage.data)
    vocab = Vocab.load(out)
    vocab.check_fits(stage.model.vocab)
    return PatchVQ.load(out / "vq.npz"), vocab


def _stage(stage: Experiment, number: int, count: int, vq: PatchVQ, vocab: Vocab, clock: "Clock", asked: int) -> Part:
    """Tokens, training and scores of one stage."""
    sizes, name = stage_sizes(stage.data.size), f"stage {number + 1}"
    with clock.part(f"{name}: {count:,} scenes to tokens"):
        source = ToySource(MINI, training_sizes(stage.data.size), count, TRAIN_SEED + number)
        pretokenize(source, vq, vocab, stage.data.path, stage.data, stage.seed, sizes=source.sizes)

    def local(start: int):
        return batches(stage.data.path, stage.data, vocab, stage.seed, start, stage.optim.steps)

    trained = f"{name}: {stage.optim.steps:,} training steps"
    with clock.part(trained):
        train(stage, local)
    with clock.part(f"{name}: {2 * asked} prompts painted and judged"):
        return _judged(stage, name, sizes, vq, vocab, asked, clock.seconds(trained))


def _judged(
    stage: Experiment, name: str, sizes: list[Pixels], vq: PatchVQ, vocab: Vocab, asked: int, seconds: float
) -> Part:
    model = restore_model(newest(stage.out), stage.model)
    square = (stage.data.size, stage.data.size)
    fresh = prompts(MINI, sizes, asked, FRESH_SEED)
    held_out = prompts(MINI, sizes, asked, FRESH_SEED, held_out=True)
    followed = [(said, square) for said, _ in prompts(MINI, [(128, 128)], FOLLOWED, FOLLOWED_SEED)]
    painted = paint(model, vq, vocab, fresh + held_out + followed, stage.sample, jax.random.key(stage.seed))
    lines = read_metrics(stage.out)
    result = Stage(
        name=name,
        size=stage.data.size,
        steps=stage.optim.steps,
        tokens=round(sum(line["tokens"] for line in lines)),
        canvases=tuple(sizes),
        losses=tuple((line["step"], line["xent"]) for line in lines),
        fresh=score(painted[:asked]),
        held_out=score(painted[asked : 2 * asked]),
        seconds=seconds,
    )
    return Part(result, tuple(painted[:asked]), tuple(painted[2 * asked :]))


def _knobs(stage: Experiment, vq: PatchVQ, vocab: Vocab) -> tuple[Knob, ...]:
    """The same prompts under other settings of sampling (the paper's Figure 8)."""
    model = restore_model(newest(stage.out), stage.model)
    asked = [(said, (128, 128)) for said, _ in prompts(MINI, [(128, 128)], 4, FOLLOWED_SEED + 1)]
    knobs = []
    for guidance in (1.0, 3.0, 7.0):
        for temperature, top_k in ((1.0, 1), (1.0, 50), (1.0, 2000), (1.5, 2000)):
            cfg = SampleConfig(guidance=guidance, temperature=temperature, image_top_k=top_k)
            painted = paint(model, vq, vocab, asked, cfg, jax.random.key(stage.seed))
            knobs.append(Knob(guidance, temperature, top_k, tuple(painted)))
    return tuple(knobs)


def _tell(stage: Stage) -> None:
    print(
        f"{stage.name} ({stage.size}x{stage.size} px): every fact right {stage.fresh.all_right:.1%}, "
        f"size obeyed {stage.fresh.size_obeyed:.1%}, held-out compositions right {stage.held_out.all_right:.1%} "
        f"({stage.fresh.count} prompts each)",
        flush=True,
    )


class Clock:
    """Wall seconds of each part, summed over the runs that worked on it, in ``out``/timings.json."""

    def __init__(self, out: Path):
        self._file = out / "timings.json"
        self._seconds = json.loads(self._file.read_text()) if self._file.is_file() else {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        print(name, flush=True)
        yield
        self._seconds[name] = self.seconds(name) + time.monotonic() - begin
        atomic_write_text(self._file, json.dumps(self._seconds, indent=2))

    def seconds(self, name: str) -> float:
        return self._seconds.get(name, 0.0)

    def timings(self) -> tuple[tuple[str, float], ...]:
        return tuple(self._seconds.items())

"""The committed model: its size, minimum scores, and the pictures that the README promises."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import run
from convert import load_model
from convert.metadata import EXPERIMENT_FILE
from lumina_jax.config import Experiment, from_dict
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.toyworld.captions import parse
from lumina_jax.toyworld.judge import judge
from lumina_jax.toyworld.scenes import MINI
from lumina_jax.toyworld.source import prompts, stage_sizes
from lumina_jax.toyworld.tasks import evaluate_tasks, paint, score_samples
from lumina_jax.vocab import Vocab

MAX_BYTES = 3_000_000


@pytest.fixture(scope="module")
def toy():
    folder = run.REPOSITORY / run.TOY_MODEL
    experiment = from_dict(Experiment, json.loads((folder / EXPERIMENT_FILE).read_text()))
    return load_model(folder)[0], PatchVQ.load(folder / "vq.npz"), Vocab.load(folder), experiment


def test_it_is_small():
    assert sum(path.stat().st_size for path in (run.REPOSITORY / run.TOY_MODEL).iterdir()) <= MAX_BYTES


@pytest.mark.parametrize(("area", "minimum"), [(64, 0.93), (96, 0.9), (128, 0.85)])
def test_pictures_from_text_score_at_least_and_copies_of_one_prompt_differ(toy, area, minimum):
    model, vq, vocab, experiment = toy
    captions = prompts(MINI, stage_sizes(area), 48, 3)
    copies = [(parse("a red circle"), (area, area))] * 16
    painted = paint(model, vq, vocab, captions + copies, experiment.sample, jax.random.key(0))
    result = score_samples(painted[:48])
    assert result.size_obeyed >= 0.95
    assert result.all_right >= minimum
    assert len({sample.image.tobytes() for sample in painted[48:]}) >= 8


MINIMUM = {
    "segmentation": ("miou", 0.95),
    "edits": ("right", 0.65),
    "describe": ("right", 0.75),
    "compare": ("right", 0.75),
    "texts": ("right", 0.9),
    "paint_ask": ("right", 0.75),
}
"""Task -> one of its scores, and the minimum of its mean over 16 exercises on square canvases."""


def test_tasks_score_at_least(toy):
    model, vq, vocab, experiment = toy
    for result in evaluate_tasks(model, vq, vocab, experiment.sample, [(64, 64)], 16, 3, tuple(MINIMUM)):
        name, minimum = MINIMUM[result.task]
        assert result.mean[name] >= minimum, result.task


def test_the_readme_s_command_paints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(run.REPOSITORY)
    prompt = "a red circle left of a blue square"
    assert run.main(["sample", "--prompt", prompt, "--size", "128x96", "--seed", "3", "--out", str(tmp_path)]) == 0
    image = np.asarray(Image.open(tmp_path / "000-0.png"))
    assert judge(image, parse(prompt), (128, 96)).all_right
    line = json.loads((tmp_path / "samples.jsonl").read_text())
    assert line["prompt"] == prompt and line["files"] == ["000-0.png"]


def test_the_same_seed_paints_the_same_alone_and_in_a_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(run.REPOSITORY)
    first, second = "a small green triangle on black", "a yellow circle"
    common = ["--size", "64x64", "--seed", "5"]
    run.main(["sample", "--prompt", first, *common, "--out", str(tmp_path / "alone")])
    run.main(["sample", "--prompt", first, "--prompt", second, *common, "--grid", "--out", str(tmp_path / "both")])
    alone, both = ((tmp_path / name / "000-0.png").read_bytes() for name in ("alone", "both"))
    assert alone == both and (tmp_path / "both" / "grid.png").is_file()


def test_a_wrong_size_names_the_nearest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(run.REPOSITORY)
    assert run.main(["sample", "--prompt", "a red circle", "--size", "100x100", "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "100x100" in message and "multiples of 32" in message and "128x128" in message

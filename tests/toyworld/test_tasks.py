"""Evaluating tasks: true replies are perfect in every task, and each task is sampled with its own settings."""

import json
from itertools import accumulate

import numpy as np
import pytest
from PIL import Image
from truth import true_replies

import run
from lumina_jax.config import DataConfig, SampleConfig, VQConfig
from lumina_jax.conversation import TASKS, tokenize
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.pictures.pixels import to_pixels
from lumina_jax.toyworld import tasks
from lumina_jax.toyworld.exercises import next_prompt
from lumina_jax.toyworld.fit import fit_omni
from lumina_jax.toyworld.omni import MIX, evaluation_exercises
from lumina_jax.toyworld.omni_judge import WORST
from lumina_jax.toyworld.source import stage_sizes
from lumina_jax.toyworld.task_sheet import turn_results, write_sheets
from lumina_jax.toyworld.tasks import evaluate_tasks
from lumina_jax.vocab import Vocab

PERFECT = {name: 1.0 for name in WORST} | {"abs_rel": 0.0, "degrees": 0.0, "psnr_db": 100.0}
SIZES = stage_sizes(64)
COUNT, SEED = 3, 5
CFG = SampleConfig(guidance=9.0, min_p=0.25, max_new_tokens=512)


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    cfg = VQConfig(kind="patch", path=str(folder / "vq.npz"), codes=1200)
    fit_omni(cfg, DataConfig(tokenizer=str(folder)))
    return PatchVQ.load(cfg.path), Vocab.load(folder)


@pytest.fixture
def truthful(coded, monkeypatch):
    """Replaces the model by the truth, and returns the list of settings it is called with."""
    vq, vocab = coded
    answers, settings = {}, []
    for task in MIX:
        for exercise in evaluation_exercises(task, SIZES, COUNT, SEED):
            for earlier in accumulate(([reply] for reply in true_replies(exercise)), initial=[]):
                if len(earlier) < len(exercise.turns):
                    prompt, full = (_tokens(exercise, earlier, vq, vocab, answered) for answered in (False, True))
                    answers[prompt.tobytes()] = full[len(prompt) : -1]

    def generate(model, prompts, key, cfg, vocab):
        settings.append(cfg)
        return [answers[prompt.tobytes()] for prompt in prompts]

    monkeypatch.setattr(tasks, "generate", generate)
    return settings


def _tokens(exercise, earlier, vq, vocab, answered):
    """The tokens of the prompt after the ``earlier`` replies, followed by its true reply if ``answered``."""
    turns, pictures = next_prompt(exercise, earlier)
    if answered:
        truth = true_replies(exercise)[len(earlier)]
        turns = [*turns[:-1], exercise.turns[len(earlier)]]
        pictures = [*pictures, truth] if isinstance(truth, np.ndarray) else pictures
    grids = [vq.encode(to_pixels(Image.fromarray(picture))[None])[0] for picture in pictures]
    return tokenize(turns, grids, vocab)[0]


def test_the_truth_is_perfect_and_each_task_has_its_own_settings(coded, truthful, tmp_path):
    results = list(evaluate_tasks(None, *coded, CFG, SIZES, COUNT, SEED))
    assert [result.task for result in results] == list(MIX)
    for result in results:
        for name, value in result.mean.items():
            assert value == pytest.approx(PERFECT[name], abs=0.4 if name == "degrees" else 1e-4), (result.task, name)
    assert {cfg.guidance for cfg in truthful} == {1.0, 4.0, CFG.guidance} and {cfg.min_p for cfg in truthful} == {
        CFG.min_p
    }
    dense = truthful[list(MIX).index("depth")]
    assert (dense.guidance, dense.image_top_k) == (1.0, TASKS["depth"].image_top_k)
    assert (tmp_path / "tasks.html") == write_sheets(results, tmp_path, note="x")
    written = json.loads((tmp_path / "tasks.json").read_text())
    assert written["tasks"]["remove"]["right"] == 1.0 and written["note"] == "x"
    page = (tmp_path / "tasks.html").read_text()
    assert page.count("<figure") == COUNT * len(MIX) and "http" not in page.replace("http://www.w3.org", "")
    assert Image.open(tmp_path / "tasks.png").width > 1000


def test_a_model_without_answers_has_the_worst_scores(coded, monkeypatch):
    calls = []

    def silent(model, prompts, key, cfg, vocab):
        calls.append(len(prompts))
        return [np.zeros(0, np.int32)] * len(prompts)

    monkeypatch.setattr(tasks, "generate", silent)
    for result in evaluate_tasks(None, *coded, CFG, SIZES, COUNT, SEED, ("depth", "edits", "text")):
        assert result.mean == {name: WORST[name] for name in result.mean}
    assert calls == [COUNT] * 3, "the second turn was sampled although the first had no picture"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--source", "omni:many"], ["omni:many", "omni:10000"]),
        (["--source", "omni_fast:9"], ["omni_fast", "omni, omni_slow"]),
        (["--source", "toy:9", "--fit", "--base", "x.npz"], ["--base", "omni:COUNT"]),
    ],
)
def test_a_wrong_source_of_tasks_is_refused(changes, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(run.REPOSITORY)
    paths = [f"data.path={tmp_path / 'x'}", "data.weights=", f"vq.path={tmp_path / 'vq.npz'}"]
    assert run.main(["pretokenize", "configs/toy_omni.py", *changes, *paths, f"data.tokenizer={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


def test_a_later_edit_has_no_input_picture(coded, truthful):
    (result,) = evaluate_tasks(None, *coded, CFG, SIZES, COUNT, SEED, ("edits",))
    first, second = turn_results(result, 0)
    assert len(first.inputs) == 1 and not second.inputs
    assert (first.reply == first.truth).all() and "<|image|>" not in first.words + second.words

"""The quickstart in miniature: the same functions with a tiny model and a few steps."""

import json
from dataclasses import replace

import pytest

import run
from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.toyworld import quickstart as module
from lumina_jax.toyworld import training_run
from lumina_jax.toyworld.quickstart import omni_quickstart, quickstart
from lumina_jax.train.checkpoint import newest, read_experiment

OMNI = ("omni_first", "omni", "omni_dialogs", "omni_questions", "omni_weak")


@pytest.fixture(scope="module")
def stages():
    full = [run.load_experiment(f"configs/toy_stage{number}.py", []) for number in (1, 2, 3)]
    tiny = ModelConfig(vocab=663, width=16, layers=1, heads=1, kv_heads=1, head_dim=16, mlp=16, dropout=0.0)
    mesh = MeshConfig(replica=4, fsdp=2, tensor=1, compute="float32", remat="none")
    return [
        replace(stage, model=tiny, mesh=mesh, data=replace(stage.data, buckets=stage.data.buckets[-1:]))
        for stage in full
    ]


@pytest.fixture(scope="module")
def finished(stages, tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart")
    return quickstart(stages, out, minutes=0.001, prompts_per_stage=4)


def test_the_report_shows_every_stage(finished):
    page = finished.read_text()
    assert all(f"stage {number}" in page for number in (1, 2, 3))
    assert page.count("<img") >= 8 and "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page


def test_all_results_are_on_disk(finished):
    out = finished.parent
    for name in ("vq.npz", "tokenizer.json", "data64/manifest.json", "stage3/metrics.jsonl", "timings.json"):
        assert (out / name).is_file()
    steps = [json.loads(line)["step"] for line in (out / "stage2" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 21))


def test_a_second_run_says_that_it_is_done(finished, stages, capsys):
    before = finished.stat().st_mtime_ns
    assert quickstart(stages, finished.parent, minutes=0.001, prompts_per_stage=4) == finished
    assert "done already" in capsys.readouterr().out
    assert finished.stat().st_mtime_ns == before


def test_another_budget_needs_another_folder(finished, stages):
    with pytest.raises(ValueError, match=r"0\.001 minutes, not 5"):
        quickstart(stages, finished.parent, minutes=5)


def test_omni_continues_from_the_last_stage_to_a_sheet_of_tasks(finished, stages, monkeypatch, capsys):
    parts = [run.load_experiment(f"configs/toy_{name}.py", ["data.buckets=288"]) for name in OMNI]
    parts = [replace(p, model=replace(stages[0].model, vocab=p.model.vocab), mesh=stages[0].mesh) for p in parts]
    monkeypatch.setattr(module, "PROMPTS", 1)
    monkeypatch.setattr(module, "STAGES", module.STAGES[:1])
    original = module.evaluate_tasks
    monkeypatch.setattr(module, "evaluate_tasks", lambda *arguments: original(*arguments, ("depth", "text")))
    with pytest.raises(FileNotFoundError, match="stage3 holds no checkpoint"):
        omni_quickstart(parts, finished.parent / "data64", 0.001)
    sheet = omni_quickstart(parts, finished.parent, 0.001, exercises=2)
    written = json.loads((sheet.parent / "tasks.json").read_text())
    assert set(written["tasks"]) == {"depth", "text"} and set(written["text_to_image"]) == {"before", "after"}
    first, *later = (
        read_experiment(newest(sheet.parent / name)) for name in ("first", "second", "dialogs", "questions")
    )
    assert [part.start for part in later] == [part.out for part in (first, *later[:-1])] and later[-1].optim.steps == 20
    assert omni_quickstart(parts, finished.parent, 0.001) == sheet and "done already" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"holds a run of 0\.001 minutes, not 3"):
        omni_quickstart(parts, finished.parent, 3)


def test_an_interrupted_run_resumes_to_the_same_numbers(finished, stages, tmp_path, monkeypatch):
    """A run stopped in stage 2 between two checkpoints and resumed has the metrics and pictures of an uninterrupted one."""
    stages = [replace(stage, save_every=6) for stage in stages]

    class Stop(Exception):
        pass

    def stopping(path, *arguments):
        for number, batch in enumerate(original(path, *arguments)):
            if "data96" in str(path) and number == 9:
                raise Stop
            yield batch

    original = training_run.batches
    monkeypatch.setattr(training_run, "batches", stopping)
    with pytest.raises(Stop):
        quickstart(stages, tmp_path, minutes=0.001, prompts_per_stage=4)
    monkeypatch.undo()
    quickstart(stages, tmp_path, minutes=0.001, prompts_per_stage=4)
    for number in (1, 2, 3):
        name = f"stage{number}/metrics.jsonl"
        assert (tmp_path / name).read_text() == (finished.parent / name).read_text()
    images = [page.read_text().split("<img")[1:] for page in (finished, tmp_path / "report.html")]
    assert [image.split(">")[0] for image in images[0]] == [image.split(">")[0] for image in images[1]]

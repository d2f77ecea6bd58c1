"""The command line as a stranger meets it: help for every verb, and errors that come at once and say what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

import run
from lumina_jax.config import Experiment

REPO = Path(__file__).resolve().parents[1]
CONFIGS = sorted(str(path) for path in (REPO / "configs").glob("[a-z]*.py") if path.stem != "pods")
VERBS = ("quickstart", "pretokenize", "train", "grow", "compile", "sample", "refine", "evaluate")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPO)


@pytest.mark.smoke
@pytest.mark.parametrize("verb", VERBS)
def test_help(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        run.main([verb, "--help"])
    assert ended.value.code == 0
    assert "usage: run.py " + verb in capsys.readouterr().out


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "configs/nothing.py"], ["configs/nothing.py", "configs/toy_stage1.py"]),
        (
            ["train", "configs/pods.py"],
            ["24 experiments", "configs/pods.py:lumina_7b_512_v5p_128", "lumina_34b_omni_v6e_256"],
        ),
        (
            ["train", "configs/pods.py:lumina_7b_512_v5p_64"],
            ["lumina_7b_512_v5p_64", "nearest", "lumina_7b_512_v5p_128"],
        ),
        (["train", "configs/pods.py:large"], ["no experiment large", "lumina_34b_512_v5p_512"]),
        (["train", "configs/toy_stage1.py:small"], ["one experiment", "leave out :small"]),
        (["train", "configs/toy_stage1.py", "optim.rate=1"], ["optim.rate", "lr"]),
        (["train", "configs/toy_stage1.py", "optim.lr=fast"], ["optim.lr", "fast", "float"]),
        (["train", "configs/toy_stage1.py", "model.heads=3", "model.kv_heads=2"], ["3", "2", "change"]),
        (["train", "configs/toy_stage1.py", "data.path=/nowhere"], ["data.path", "/nowhere", "pretokenize"]),
        (["pretokenize", "configs/toy_stage1.py", "--source", "/nowhere.json"], ["/nowhere.json"]),
        (["pretokenize", "configs/toy_stage1.py", "--source", "toy:many"], ["toy:many", "toy:10000"]),
        (["compile", "configs/toy_stage1.py", "--topology", "v5p:3x3x3"], ["3x3x3", "4x4x4"]),
        (["compile", "configs/toy_stage1.py", "--topology", "tpu:2x2"], ["'tpu'", "v6e"]),
        (["compile", "configs/toy_stage1.py", "--topology", "v5e:2x2", "--what", "all"], ["'all'", "prefill"]),
        (["sample"], ["--prompt"]),
        (["sample", "--prompt", "x", "--model", "/nowhere"], ["/nowhere"]),
        (["evaluate"], ["--data"]),
    ],
)
def test_what_is_wrong_is_said(arguments, said, capsys):
    assert run.main(arguments) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in said), message
    assert "Traceback" not in message


def test_a_size_that_is_none_is_refused_before_the_model_is_read(capsys):
    with pytest.raises(SystemExit) as ended:
        run.main(["sample", "--prompt", "x", "--size", "wide", "--model", "/nowhere"])
    assert ended.value.code == 2
    assert "'wide' is not WIDTHxHEIGHT" in capsys.readouterr().err


def test_a_wrong_word_is_refused_before_anything_heavy_is_imported():
    script = (
        "import sys, run; run.main(['train', 'configs/toy_stage1.py', 'optim.rate=1']); print('jax' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, check=True)
    assert result.stdout.strip() == "False"


def test_changes_may_stand_behind_options(capsys):
    assert run.main(["pretokenize", "--source", "/nowhere.json", "configs/toy_stage1.py", "data.size=96"]) == 2
    with pytest.raises(SystemExit):
        run.main(["train", "configs/toy_stage1.py", "--lr", "3"])
    assert "--lr" in capsys.readouterr().err


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_ends_in_an_experiment(config):
    assert isinstance(run.load_experiment(config, []), Experiment)


def test_stages_build_on_each_other():
    for family in ("toy_stage{}", "lumina_7b_{}", "lumina_34b_{}"):
        names = (1, 2, 3) if "toy" in family else (512, 768, 1024)
        stages = [run.load_experiment(f"configs/{family.format(name)}.py", []) for name in names]
        assert stages[0].data.size < stages[1].data.size < stages[2].data.size
        assert [stage.start for stage in stages[1:]] == [stage.out for stage in stages[:-1]]
        assert len({stage.model for stage in stages}) == 1

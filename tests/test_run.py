"""The command line as a stranger meets it: help for every verb, and errors that come at once and say what to do."""

import errno
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import lumina_jax
import run
from lumina_jax.cli import program
from lumina_jax.config import Experiment
from lumina_jax.errors import UserError

REPO = Path(__file__).resolve().parents[1]
CONFIGS = sorted(str(path) for path in (REPO / "configs").glob("[a-z]*.py") if path.stem != "pods")
VERBS = (
    "quickstart",
    "pretokenize",
    "grow",
    "train",
    "data",
    "compile",
    "sample",
    "inspect",
    "convert",
    "refine",
    "evaluate",
    "study",
)


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
    ("arguments", "words"),
    [
        (["train", "configs/nothing.py"], ["configs/nothing.py", "configs/toy_stage1.py"]),
        (
            ["train", "configs/pods.py"],
            ["48 experiments", "configs/pods.py:lumina_7b_512_v5p_128", "lumina_34b_omni_tpu7x_1024"],
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
        (["sample", "--prompts", "/nowhere.txt"], ["/nowhere.txt"]),
        (["sample", "--prompts", "configs"], ["configs", "text file"]),
        (["sample", "--task", "depth", "--image", "/nowhere.png"], ["/nowhere.png", "picture"]),
        (["pretokenize", "configs/toy_stage1.py", "--source", "webdataset:/nowhere.tar"], ["/nowhere.tar"]),
        (["pretokenize", "configs/toy_stage1.py", "--source", "toy:9", "vq.path=/nowhere.npz"], ["/nowhere.npz"]),
        (
            ["pretokenize", "configs/toy_stage1.py", "--source", "toy:9", "--fit", "vq.path=run.py/v.npz"],
            ["run.py is a file"],
        ),
        (["convert", "verify", "/nowhere", "/nowhere"], ["/nowhere", "config.json"]),
        (["evaluate"], ["--data"]),
        (["evaluate", "--data", "configs"], ["configs", "run.py pretokenize"]),
        (["evaluate", "--data", "run.py"], ["run.py", "pretokenize"]),
        (["evaluate", "--pictures", "run.py"], ["run.py", "picture"]),
    ],
)
def test_an_error_names_value_limit_and_cure(arguments, words, capsys):
    assert run.main(arguments) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert "Traceback" not in message


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "--prompt", "x", "--size", "wide"], "'wide' is not WIDTHxHEIGHT"),
        (["evaluate", "--toy", "2", "--seed", "-1"], "-1 is not a seed; give a whole number from 0"),
        (["evaluate", "--toy", "2", "--seed", "9" * 20], "is not a seed"),
        (
            ["sample", "--prompt", "x", "--seed", "1.5"],
            "1.5 is not a seed; give a whole number of at most 4,300 digits",
        ),
        (["sample", "--prompt", "x", "--out", "run.py/samples"], "run.py is a file; give another"),
        (["evaluate", "--toy", "0"], "0 is not a whole number of at least 1"),
        (["evaluate", "--tasks", "many"], "many is not a whole number"),
        (["evaluate", "--toy", "2", "--sizes", "7"], "7 is not a whole number of at least 32"),
        (["quickstart", "--minutes", "nan"], "nan is not a positive number of minutes"),
        (["quickstart", "--minutes", "soon"], "soon is not a positive number of minutes"),
        (["quickstart", "--out", "run.py"], "run.py is a file; give another"),
        (["convert", "import", "assets/toy", "run.py/model"], "run.py is a file; give another"),
        (["data", "export", "--source", "toy:3", "--out", "run.py"], "run.py is a file; give another"),
        (["pretokenize", "configs/toy_stage1.py", "--source", "toy:9", "--shard-records", "0"], "at least 1"),
        (["data", "inspect", "x", "--out", "run.py/x.html"], "run.py is a file; give another"),
        (["data", "inspect", "x", "--out", "configs"], "configs is a folder; give a file"),
        (["trane"], "invalid choice: 'trane'"),
        (["--gone"], "unknown arguments: --gone; see run.py VERB --help"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_read(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path, capsys):
    tmp_path.chmod(0o500)
    with pytest.raises(SystemExit):
        run.main(["sample", "--prompt", "x", "--out", str(tmp_path / "out")])
    assert "read-only for this user; give another" in capsys.readouterr().err


def test_without_a_verb_the_verbs_are_listed_one_a_line(capsys):
    assert run.main([]) == 0
    listed = capsys.readouterr().out.partition("verbs:")[2].splitlines()
    assert [line.split()[0] for line in listed if line.startswith("    ")] == list(VERBS)
    assert all(len(line.split()) > 3 for line in listed if line.startswith("    "))


def test_the_version_names_what_results_depend_on(capsys):
    with pytest.raises(SystemExit) as ended:
        run.main(["--version"])
    assert ended.value.code == 0
    names = (
        f"lumina_jax {lumina_jax.__version__}",
        f"jax {metadata.version('jax')}",
        f"flax {metadata.version('flax')}",
    )
    assert capsys.readouterr().out == f"{', '.join(names)}, Python {platform.python_version()}\n"


@pytest.fixture
def verb_that_raises(monkeypatch):
    """``verb_that_raises(error)`` plants a verb "plant" that raises ``error``."""

    def plant(error: BaseException) -> None:
        def raises(options):
            raise error

        monkeypatch.setattr(program, "VERBS", (lambda verbs: verbs.add_parser("plant").set_defaults(run=raises),))

    return plant


@pytest.mark.smoke
@pytest.mark.parametrize("kind", [KeyError, ValueError, OSError, FileNotFoundError, ImportError, RuntimeError])
def test_an_error_that_is_not_the_user_s_keeps_its_traceback(kind, verb_that_raises):
    verb_that_raises(kind("a bug"))
    with pytest.raises(kind, match="a bug"):
        run.main(["plant"])


@pytest.mark.parametrize("seed", ["-1", "1_000", "9" * 20, "-" + "9" * 400])
def test_sampling_takes_a_seed_of_any_size(seed):
    assert run.parse(["sample", "--prompt", "x", "--seed", seed]).seed == int(seed)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "NAME"],
        ["train", "configs/toy_stage1.py", "data.path=NAME"],
        ["sample", "--task", "depth", "--image", "NAME"],
        ["sample", "--prompt", "x", "--model", "NAME"],
        ["data", "inspect", "NAME"],
        ["evaluate", "--data", "NAME"],
        ["grow", "configs/toy_stage1.py", "start=NAME"],
    ],
)
def test_a_name_that_no_disk_can_hold_is_an_error_of_one_line(arguments, capsys):
    assert run.main([word.replace("NAME", "x" * 300) for word in arguments]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"run.py {arguments[0]}")


def test_what_the_system_refuses_is_an_error_of_one_line(verb_that_raises, capsys):
    verb_that_raises(PermissionError(errno.EACCES, "Permission denied", "a\nb"))
    assert run.main(["plant"]) == 2
    assert capsys.readouterr().err == "run.py plant: a\\nb: Permission denied; check its permissions\n"


def test_a_folder_with_a_name_that_no_disk_can_hold_is_refused_before_work(capsys):
    with pytest.raises(SystemExit):
        run.main(["sample", "--prompt", "x", "--out", "x" * 300])
    assert "cannot be a folder: File name too long; give another" in capsys.readouterr().err


@pytest.mark.smoke
@pytest.mark.parametrize("kind", [UserError, *UserError.__subclasses__()])
def test_an_error_that_a_user_can_mend_is_one_line(kind, verb_that_raises, capsys):
    verb_that_raises(kind("9 is more than 8; give less"))
    assert run.main(["plant"]) == 2
    assert capsys.readouterr() == ("", "run.py plant: 9 is more than 8; give less\n")


def test_ctrl_c_ends_with_130_and_no_traceback(verb_that_raises, capsys):
    verb_that_raises(KeyboardInterrupt())
    assert run.main(["plant"]) == 130
    assert capsys.readouterr() == ("", "run.py plant: interrupted\n")


def test_a_chat_without_stdin_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert run.main(["sample", "--chat"]) == 2
    assert "stdin, which is closed" in capsys.readouterr().err


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

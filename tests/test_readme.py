"""Every command and every Python block that the guides print: run, in miniature where it would take hours, or else checked.

A command without a rule below is run as it is printed, in a folder that looks like a checkout.
"""

import io
import json
import re
import runpy
import shlex
import shutil
import sys
import tarfile
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from commands import PROGRAMS, arguments, blocks, commands, named_files, spans
from goldens_at import golden_roots
from PIL import Image
from project_sources import REPO, project_sources
from test_names import missing_imports

import run
from lumina_jax.errors import UserError
from lumina_jax.pods import topology
from lumina_jax.vocab import Vocab

GUIDES = sorted(
    path.relative_to(REPO)
    for path in REPO.rglob("*.md")
    if not path.relative_to(REPO).parts[0].startswith((".", "out"))
)
OTHER_PROGRAMS = {
    "python3* -m venv *": "makes an environment; .ci/run does",
    "pip install *": "fetches packages; .ci/run does",
    "python -m pytest*": "starts these very tests",
    "ruff *": "lint; .ci/run does",
    "mypy": "types; .ci/run does",
    ".ci/run": "starts these very tests",
    "gcloud *": "needs an account at Google",
    "on_all *": "needs a TPU slice",
    "xpk *": "needs an account at Google",
    "hf *": "needs an account of the Hugging Face hub",
    "docker *": "needs docker and a registry",
    "bash lumina_jax/pods/restart.sh *": "starts a run again and again; tests/pods runs it",
}
"""Commands that are not this project's, and why no test runs them. bash must be able to read them."""
CHECKED = {
    "python run.py quickstart*": "trains for 10 minutes and more; .ci/run gives it 1, tests/toyworld a few steps",
    "python run.py train configs/lumina_*": "needs a machine that holds 7 billion weights",
    "python* run.py train configs/pods.py:*": "needs a pod",
    "python run.py train CONFIG --distributed *": "needs several processes; tests/train and tests/cluster start them",
    "python run.py compile *": "takes minutes and libtpu; tests/pods compiles small programs",
    "python run.py sample --prompts tasks.jsonl *": "takes a minute; the guide's commands for one task each run",
    "python run.py sample --model out/7B-768 *": "needs the weights of 7B",
    "python run.py * hf://*": "needs the hub; tests/convert fetches small models from a server on this machine",
    "python run.py sample --model out/chameleon-7b *": "needs the weights of 7B; tests/convert asks small ones of this layout",
    "python run.py convert import C/models/7b *": "needs the weights of 7B; tests/convert reads small ones of this layout",
    "python run.py convert export out/lumina_7b_512 *": "needs a training run of 7B",
    "python run.py convert export out/quickstart30/*": "needs a quickstart of 70 minutes",
    "python run.py pretokenize configs/lumina_7b_omni.py *": "needs the published sets; tests/data reads small copies",
    "python run.py pretokenize ... *": "an abbreviated command",
    "python run.py pretokenize configs/lumina_7b_512.py --source captions.jsonl *": "writes to a bucket",
    "python run.py data inspect tokens/omni/depth *": "needs a published set",
    "python run.py data export --source *vkitti2:*": "needs a published set; tests/data exports a small copy",
}
"""Commands that are parsed, their configs loaded and their options looked up in --help, and why they are not run."""
SMALL = "optim.steps=2 optim.warmup=1 model.layers=1 mesh.unroll=1"
MINIATURES = {
    "python run.py pretokenize configs/toy_stage1.py *": ("toy:60000", "toy:32", ""),
    "python run.py pretokenize configs/toy_stage2.py *": ("toy:20000", "toy:32", ""),
    "python run.py train configs/toy_stage1.py": ("", "", f"{SMALL} data.buckets=50"),
    "python run.py train configs/toy_stage2.py optim.steps=1500": ("", "", f"{SMALL} data.buckets=73"),
    "python run.py train configs/own_pictures.py": ("", "", f"{SMALL} data.buckets=384 data.batch=8"),
    "python run.py evaluate --model out/toy/stage2 --toy 128 *": ("128", "2", ""),
    "python run.py pretokenize configs/lumina_7b_512.py * data.path=tokens/*": ("", "", "data.size=64"),
    "python run.py pretokenize * --sizes 512,768,1024 *": (
        "512,768,1024",
        "64,96",
        "data.tokenizer=MODEL vq.path=MODEL",
    ),
    "python run.py data prepare *": ("/data/tfds", "tfds", ""),
    "python run.py convert verify FOLDER --by logits": ("", "", "--tokens 4"),
    "python run.py convert verify *": ("", "", "--by weights"),
    "python run.py study settings *": ("", "", "--guidance 4 --top-k 1,2000 --temperature 1.0"),
    "python run.py study seeds *": ("6", "2", ""),
}
"""Commands that are run smaller: a word, the word put in its place, and words added at the end."""
PLACEHOLDERS = {
    "CONFIG": "configs/toy_stage1.py",
    "N": "1",
    "SLICE": "v5p:4x4x4",
    "configs/pods.py:NAME": "configs/pods.py:lumina_7b_512_v5p_128",
    "64|96|128": "64",
    "0..6": "0",
}
"""Words of commands that stand for others; "..." stands for none."""
OPTION = re.compile(r"--[a-z][a-z0-9-]*")
PYTHON_CHECKED = {
    "OneFormerForUniversalSegmentation": "needs OneFormer's weights",
    "out/seed/records.jsonl": "needs SEED-Data-Edit",
}
"""Python blocks that hold a word are only checked for imports, and why."""


def printed_commands() -> list[tuple[str, str]]:
    """(guide:line, command) of all bash blocks, in order."""
    found = []
    for guide in GUIDES:
        for line, script in blocks((REPO / guide).read_text(encoding="utf-8"), "bash"):
            found += [(f"{guide}:{line}", command) for command in commands(script)]
    return found


def rule(table: dict, command: str):
    """What a table of rules has for a command, None for nothing."""
    return next((value for pattern, value in table.items() if fnmatchcase(command, pattern)), None)


BLOCKS = printed_commands()
SPANS = [(str(guide), span) for guide in GUIDES for span in spans((REPO / guide).read_text(encoding="utf-8"))]
PYTHON = [
    (f"{guide}:{line}", code)
    for guide in GUIDES
    for line, code in blocks((REPO / guide).read_text(encoding="utf-8"), "python")
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder like a checkout, with small files under every name that the guides' commands read."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("assets", "configs", "convert", "lumina_jax", "run.py", "tests"):
        (folder / name).symlink_to(REPO / name)
    for name in ("FOLDER", "MODEL", "out/chameleon-7b"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(REPO / run.TOY_MODEL)
    shutil.copytree(REPO / run.TOY_MODEL, folder / "L/7B-768", ignore=shutil.ignore_patterns("vq.npz"))
    for path in (golden_roots("vq")[0] / "vq" / "small").glob("vqgan.*"):
        shutil.copy(path, folder / "L/7B-768")
    rng = np.random.default_rng(0)
    for name in ("my_pictures", "holiday", "pairs"):
        (folder / name).mkdir()
        for index in range(8):
            pixels = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((320, 192)).save(folder / name / f"{index}.png")
            (folder / name / f"{index}.txt").write_text(f"picture number {index}")
    pairs = "".join(f'{{"image": "{index}.png", "caption": "A cat."}}\n' for index in range(8))
    (folder / "my_pictures" / "captions.jsonl").write_text(pairs)
    (folder / "pairs.jsonl").write_text(pairs.replace('"image": "', '"image": "pairs/'))
    for index in range(128):
        with tarfile.open(folder / f"pairs/{index:03d}.tar", "w") as tar:
            for suffix in ("png", "txt"):
                tar.add(folder / f"pairs/{index % 8}.{suffix}", f"{index:06d}.{suffix}")
    dialog = [{"from": "human", "value": "What is red?"}, {"from": "gpt", "value": "A red circle."}]
    (folder / "out_dir").mkdir()
    vocab = Vocab.load(folder / "MODEL")
    tokens = [vocab.bos, *vocab.encode("red"), vocab.end_of_turn]
    (folder / "out_dir/record.json").write_text(json.dumps([{"token": tokens, "label": tokens}] * 8))
    (folder / "openhermes2_5.json").write_text(json.dumps([{"conversations": dialog}] * 8))
    about = [{"from": "human", "value": "<image>\nWhat is red?"}, {"from": "gpt", "value": "A red circle."}]
    records = [{"image": f"{index}.png", "conversations": about} for index in range(8)]
    (folder / "mgm_instruction.json").write_text(json.dumps(records))
    (folder / "scores.json").write_text('{"held_out": {"loss": 1.0}}')
    (folder / "MGM-Finetune").symlink_to("pairs")
    return folder


@pytest.fixture
def at_home(checkout, monkeypatch) -> Path:
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(sys, "stdin", io.StringIO("what is there?\n\n"))
    return checkout


def check(command: str, capsys, whole: bool) -> None:
    """Parses a command, loads its config with its changes, and looks for its options in --help.

    Without ``whole`` it may lack arguments, as where a text only names it.
    """
    command = command.replace(" pretokenize ... ", " pretokenize CONFIG ")
    program, *words = [PLACEHOLDERS.get(word, word) for word in arguments(command) if word != "..."]
    printed = help_of(program, words, capsys)
    assert not [word for word in words if OPTION.fullmatch(word) and word not in printed], f"{command}: no such option"
    if program != "run.py" or not words:
        return
    try:
        options = run.parse(words)
    except SystemExit:
        error = capsys.readouterr().err
        assert not whole and "the following arguments are required" in error, f"{command}: {error}"
        return
    if "config" in options:
        run.load_experiment(options.config, options.changes)
    if "topology" in options:
        topology.parse(options.topology, options.slices)


def help_of(program: str, words: list[str], capsys) -> str:
    """What a program prints for --help: run.py that of its verb, with a second word where the verb has some."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        if program == "run.py":
            run.main([*(word for word in words[:2] if word.isalpha() and word.islower()), "--help"])
        patch.setattr(sys, "argv", [program, "--help"])
        patch.syspath_prepend((REPO / program).parent)
        runpy.run_path(str(REPO / program), run_name="__main__")
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    return printed.out


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=[f"{where}-{n}" for n, (where, _) in enumerate(BLOCKS)])
def test_a_printed_command_runs(number, at_home, capsys):
    where, command = BLOCKS[number]
    if rule(OTHER_PROGRAMS, command):
        return
    if rule(CHECKED, command):
        return check(command, capsys, whole="..." not in shlex.split(command))
    if not Path("prompts.jsonl").exists():
        for guide in GUIDES:
            for _, script in blocks((REPO / guide).read_text(encoding="utf-8"), "bash"):
                commands(script, at_home)  # writes what the printf of a block writes
    word, replacement, added = rule(MINIATURES, command) or ("", "", "")
    program, *words = [replacement if w == word else w for w in arguments(command) if w != "..."]
    assert program == "run.py", f"{where}: {command} is no command of run.py; give it a rule in {Path(__file__).name}"
    assert run.main(words + added.split()) == 0, capsys.readouterr().err


@pytest.mark.parametrize(("where", "span"), SPANS, ids=[f"{where}-{n}" for n, (where, _) in enumerate(SPANS)])
def test_a_command_named_in_a_sentence_exists(where, span, at_home, capsys):
    if not rule(OTHER_PROGRAMS, span):
        check(span, capsys, whole=False)


@pytest.mark.parametrize(("where", "code"), PYTHON, ids=[where for where, _ in PYTHON])
def test_a_printed_python_block_runs(where, code, at_home):
    assert missing_imports(project_sources() | {"guide": code}) == []
    if not any(word in code for word in PYTHON_CHECKED):
        exec(compile(code, where, "exec"), {"__name__": "guide"})


def unused_rules(rules: dict[str, object], texts: list[str]) -> list[str]:
    """The patterns of a table that match none of the texts."""
    return [pattern for pattern in rules if not any(fnmatchcase(text, pattern) for text in texts)]


def test_every_rule_is_of_use():
    commands = [command for _, command in BLOCKS]
    for table in (OTHER_PROGRAMS, CHECKED, MINIATURES):
        assert unused_rules(table, commands) == []
    assert all(any(word in code for _, code in PYTHON) for word in PYTHON_CHECKED)
    assert unused_rules({"python gone*": "planted"}, commands) == ["python gone*"]


def test_no_command_hides_in_a_block_of_another_kind():
    for guide in GUIDES:
        for line, text in blocks((REPO / guide).read_text(encoding="utf-8"), ""):
            assert not text.startswith(PROGRAMS), f"{guide}:{line} prints commands; begin the block with ```bash"


@pytest.mark.parametrize("guide", GUIDES, ids=str)
def test_every_file_that_a_guide_names_is_there(guide):
    names = named_files((REPO / guide).read_text(encoding="utf-8"))
    assert not [name for name in names if not (REPO / name).exists()]
    assert named_files("`lumina_jax/gone.py` and [that](../tests/gone.md)") == ["lumina_jax/gone.py", "tests/gone.md"]


@pytest.mark.parametrize(
    "planted",
    [
        "python run.py trane configs/toy_stage1.py",
        "python run.py train configs/gone.py",
        "python run.py train configs/toy_stage1.py optim.rate=1",
        "python run.py sample --promt x",
        "python run.py data inspect tokens --colour red",
        "python run.py compile configs/toy_stage1.py --topology v9:1x1",
        "python tests/bench/sample.py toy --gone",
    ],
)
def test_a_planted_command_that_is_wrong_is_refused(planted, at_home, capsys):
    with pytest.raises((AssertionError, UserError)):
        check(planted, capsys, whole=True)


def test_a_planted_script_that_bash_cannot_read_is_refused():
    assert commands("P='python run.py'\n$P train a.py && .venv/bin/python run.py 'x y'") == [
        "python run.py train a.py",
        "python run.py 'x y'",
    ]
    with pytest.raises(ValueError, match="unexpected end of file"):
        commands("if true; then run")


def test_what_a_script_writes_stays_out_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = "printf x > a.jsonl; echo y >> b.txt; run.py train 2> c.log"
    assert commands(script) == ["run.py train"] and not any(tmp_path.iterdir())
    assert commands(script, tmp_path) == ["run.py train"]
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "b.txt", "c.log"}

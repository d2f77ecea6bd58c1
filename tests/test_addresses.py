"""Every argument and field that takes a path is given URLs: each works, or one line says before any work why it cannot.

Never is a folder made that is named after a scheme.
"""

import argparse
import shutil

import pytest

import run
from lumina_jax import first_checks
from lumina_jax.cli import arguments, checks
from lumina_jax.cli.experiments import PATHS
from lumina_jax.cli.parser import Parser
from lumina_jax.errors import UserError
from lumina_jax.places import place

TYPES = (
    arguments.input_path,
    arguments.input_paths,
    arguments.model_path,
    arguments.output_path,
    arguments.output_file,
)
MODEL = ("model", "tokenizer", "vq", "compile_cache")
CONVERT = ("source", "target", "tokenizer", "vq")
TAKES = {
    "sample": (*MODEL, "prompts", "image", "history", "like", "out"),
    "inspect": ("pictures",),
    "convert import": CONVERT,
    "convert export": (*CONVERT, "scores", "pictures"),
    "convert inspect": ("path",),
    "convert verify": ("a", "b"),
    "refine": (*MODEL, "images", "out"),
    "evaluate": (*MODEL, "data", "out", "pictures", "lpips"),
    "study settings": (*MODEL, "prompts", "out"),
    "study seeds": (*MODEL, "prompts", "out", "lpips"),
    "study text": (*MODEL, "prompts", "out"),
    "data inspect": ("path", "tokenizer", "vq", "out"),
    "data prepare": ("out",),
    "data export": ("tokens", "out"),
    "pretokenize": ("base",),
    "compile": ("out",),
    "quickstart": ("out", "compile_cache"),
    "grow": MODEL,
}
"""Verb -> its arguments that are a path or a URL. What follows --source is read by lumina_jax/data/sources, a config from here."""
WORDS = {
    "sample": ["--prompt", "x"],
    "inspect": ["x.png"],
    "refine": ["x.png"],
    "convert import": ["src", "dst"],
    "convert export": ["src", "dst", "--layout", "hf"],
    "convert inspect": ["src"],
    "convert verify": ["a", "b"],
    "data inspect": ["tokens"],
    "data prepare": ["--source", "x.jsonl", "--name", "x", "--out", "prepared"],
    "data export": ["--tokens", "tokens", "--out", "exported"],
    "pretokenize": ["configs/toy_stage1.py", "--source", "toy:8"],
    "compile": ["configs/toy_stage1.py", "--topology", "v5e:4x4"],
    "grow": ["configs/toy_stage1.py"],
}
"""What else a verb needs, the positional arguments first."""
WRONG = ("nosuch://bucket/x", "gs:/bucket/x")


def parsers() -> dict[str, Parser]:
    """Every parser that takes arguments, by the words of its verb."""
    top, found = Parser(prog="run.py"), {}
    verbs = top.add_subparsers(prog="run.py")
    for add in run.VERBS:
        add(verbs)

    def walk(parser: Parser) -> None:
        nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        for child in (child for action in nested for child in action.choices.values()):
            walk(child)
        if not nested:
            found[parser.prog.removeprefix("run.py ")] = parser

    walk(top)
    return found


PARSERS = parsers()


def taking(verb: str) -> list[argparse.Action]:
    return [action for action in PARSERS[verb]._actions if action.type in TYPES]


def words(verb: str, action: argparse.Action, address: str) -> list[str]:
    """A command line of ``verb`` with ``address`` for one of its arguments."""
    rest, count = list(WORDS.get(verb, [])), action.nargs if isinstance(action.nargs, int) else 1
    if action.option_strings:
        return [*verb.split(), *rest, action.option_strings[0], *[address] * count]
    positional = [other.dest for other in PARSERS[verb]._actions if not other.option_strings]
    rest[positional.index(action.dest)] = address
    return [*verb.split(), *rest]


def refusal(command: list[str], capsys) -> str:
    """The one line on stderr of a command that ends with 2."""
    try:
        code = run.main(command)
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1, (code, error)
    return error


ALL = [(verb, action.dest) for verb in TAKES for action in taking(verb)]


def action_of(verb: str, name: str) -> argparse.Action:
    return next(action for action in taking(verb) if action.dest == name)


def test_these_are_all_arguments_that_take_a_path():
    assert {verb: tuple(action.dest for action in taking(verb)) for verb in PARSERS if taking(verb)} == TAKES


@pytest.mark.parametrize(("verb", "name"), ALL)
@pytest.mark.parametrize("address", WRONG)
def test_an_address_of_no_store_is_refused_in_one_line(verb, name, address, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert address in refusal(words(verb, action_of(verb, name), address), capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("verb", "name"), ALL)
def test_what_is_not_on_a_store_or_cannot_be_written_there_is_said_before_any_work(
    verb, name, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    action, address = action_of(verb, name), "memory://gone/x"
    system = place(address).fs
    is_output = action.type in (arguments.output_path, arguments.output_file)

    def forbidden(*_, **__):
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(type(system), "pipe_file", forbidden)
    line = refusal(words(verb, action, address), capsys)
    assert "memory://gone" in line and ("403 Forbidden" in line if is_output else "is missing" in line)
    assert list(tmp_path.iterdir()) == [] and not system.exists("/gone")


@pytest.mark.parametrize("address", [*WRONG, "https://example.com/config.py"])
def test_a_config_is_read_from_this_machine(address, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (["train", address], ["data", "inspect", "tokens", "--config", address]):
        assert address in refusal(command, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("address", WRONG)
def test_a_field_of_a_config_is_refused_likewise(name, address):
    with pytest.raises(UserError) as caught:
        run.load_experiment("configs/toy_stage1.py", [f"{name}={address}"])
    assert str(caught.value).startswith(f"{name}: ") and address in str(caught.value)
    cfg = run.load_experiment("configs/toy_stage1.py", [f"{name}=memory://bucket/x"])
    group, _, field = name.rpartition(".")
    assert getattr(getattr(cfg, group) if group else cfg, field) == "memory://bucket/x"


@pytest.mark.parametrize(
    "command",
    [["quickstart"], ["data", "prepare", "--source", "toy.jsonl", "--name", "x"]],
    ids=["quickstart", "prepare"],
)
def test_verbs_that_need_a_disk_say_so(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = refusal([*command, "--out", "memory://bucket/x"], capsys)
    assert "memory://bucket/x" in line and "local folder" in line and list(tmp_path.iterdir()) == []


def test_a_run_without_room_for_a_checkpoint_says_so_before_it_loads_anything(tmp_path, monkeypatch):
    cfg = run.load_experiment("configs/toy_stage1.py", [f"out={tmp_path}/run"])
    checks.check_run(cfg)
    monkeypatch.setattr(first_checks.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(
        UserError, match=rf"out: {tmp_path}/run has 1\.0 MB free, but [\d.]+ MB will be written; free space"
    ):
        checks.check_run(cfg)
    with pytest.raises(UserError, match=rf"{tmp_path}/samples has 1\.0 MB free, but 16\.8 MB will be written"):
        checks.check_options(run.parse(["sample", "--prompt", "x", "--out", f"{tmp_path}/samples"]))
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=rf"{tmp_path}/run cannot be a folder"):
        checks.check_run(cfg)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]

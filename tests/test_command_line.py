"""Commands as printed: help that says every default and unit, the nearest word, any folder, any path, one line and no more."""

import argparse
import contextlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from inspect import getdoc
from pathlib import Path

import pytest
from commands import blocks, spans, unquoted

import run
from lumina_jax.cli import ending, program
from lumina_jax.cli.arguments import expand_home, input_path
from lumina_jax.cli.parser import Parser
from lumina_jax.config import Experiment
from lumina_jax.errors import InputError, MissingFileError, interrupted

REPO = Path(__file__).resolve().parents[1]
GUIDES = sorted(p for p in REPO.rglob("*.md") if not p.relative_to(REPO).parts[0].startswith((".", "out")))
DIMENSIONLESS = ("--seed", "--top-k", "--guidance", "--temperature", "--min-p", "--tolerance", "--process")
UNITS = re.compile(
    r"\b(pixels|pictures|tokens?|seconds|minutes|records|files|slices|compilations|prompts|exercises|answers|devices|many)\b"
)


def parsers() -> dict[str, Parser]:
    """Every parser that takes arguments, by its words."""
    top, found = Parser(prog="run.py"), {}

    def walk(parser: Parser) -> None:
        nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        for action in nested:
            for child in action.choices.values():
                walk(child)
        if not nested:
            found[parser.prog] = parser

    verbs = top.add_subparsers(prog="run.py")
    for add in run.VERBS:
        add(verbs)
    walk(top)
    return found


PARSERS = parsers()
OPTIONS = [(prog, action) for prog, parser in PARSERS.items() for action in parser._actions if action.option_strings]


def help_of(prog: str, action: argparse.Action) -> str:
    """An option's help as it is printed."""
    return PARSERS[prog]._get_formatter()._expand_help(action)


@pytest.mark.parametrize(("prog", "action"), [pair for pair in OPTIONS if pair[1].nargs != 0 and not pair[1].required])
def test_the_help_of_an_option_says_its_default(prog, action):
    said = re.search(r"\(default: ([^)]*)\)$", help_of(prog, action))
    assert said, f"{prog} {action.option_strings[0]}: {help_of(prog, action)}"
    assert said[1] == str(action.default) or action.default is None or "default" in action.help or not action.default


@pytest.mark.parametrize(("prog", "action"), OPTIONS)
def test_the_help_of_a_number_says_its_unit(prog, action):
    if action.type is None or action.option_strings[0] in DIMENSIONLESS:
        return
    if isinstance(action.default, int | float) or "number" in getattr(action.type, "__qualname__", ""):
        assert UNITS.search(help_of(prog, action)), f"{prog} {action.option_strings[0]}: {help_of(prog, action)}"


@pytest.mark.parametrize("prog", PARSERS)
def test_help_fits_into_80_columns(prog, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, PARSERS[prog].format_help().splitlines())) <= 80


def test_every_field_is_explained():
    def unexplained(cfg) -> list[str]:
        doc = getdoc(type(cfg))
        return [
            name
            for field in fields(cfg)
            for name in (
                unexplained(getattr(cfg, field.name))
                if is_dataclass(getattr(cfg, field.name))
                else [f"{type(cfg).__name__}.{field.name}"] * (f"``{field.name}" not in doc)
            )
        ]

    assert unexplained(Experiment()) == []


def test_the_fields_of_a_config_are_listed_with_values_and_defaults(capsys):
    with pytest.raises(SystemExit) as ended:
        run.main(["train", str(REPO / "configs/toy_stage1.py"), "optim.lr=3e-3", "--fields"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert "optim.lr=0.003  (default: 2e-05)" in printed and "data.buckets=42,50  (default: 1280)" in printed
    assert "mesh.zero1=true\n" in printed and "# One training run" in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["trian"], "train"),
        (["pretokenise"], "pretokenize"),
        (["data", "inpect"], "inspect"),
        (["sample", "--promt", "x"], "--prompt"),
        (["train", "c.py", "--distribute"], "--distributed"),
        (["data", "inspect", "x", "--sampels=3"], "--samples"),
    ],
)
def test_a_misspelt_word_names_the_nearest(arguments, nearest, capsys):
    try:
        run.parse(arguments)
    except SystemExit as ended:
        error = capsys.readouterr().err
        assert ended.code == 2 and f"did you mean {nearest}?" in error and error.count("\n") == 1
    else:
        assert nearest == "--distributed"  # argparse takes the beginning of an option for it


def test_a_misspelt_field_or_config_names_the_nearest(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"did you mean optim\.warmup\?"):
        run.load_experiment(str(REPO / "configs/toy_stage1.py"), ["optim.warmap=3"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=r"did you mean \S+/configs/toy_omni\.py\?"):
        run.load_experiment("configs/toy_omini.py", [])


@pytest.mark.parametrize(
    ("word", "fields"),
    [("--steps", "optim.steps=VALUE or profile.steps=VALUE"), ("--out", "out=VALUE"), ("--lr", "optim.lr=VALUE")],
)
def test_a_field_given_as_an_option_is_named_as_a_field(word, fields, capsys):
    with pytest.raises(SystemExit, match="2"):
        run.parse(["train", "configs/own_pictures.py", word, "50"])
    error = capsys.readouterr().err
    assert f"fields of a config are given as {fields}; see" in error and "did you mean" not in error


def test_a_field_without_its_group_is_found_in_it():
    with pytest.raises(InputError, match=r"no field lr; did you mean optim\.lr\?"):
        run.load_experiment(str(REPO / "configs/toy_stage1.py"), ["lr=3"])


def test_only_what_must_be_given_is_asked_for(capsys):
    for verb in ("train", "pretokenize", "compile"):
        with pytest.raises(SystemExit, match="2"):
            run.parse([verb])
        assert "a.b=value" not in capsys.readouterr().err


@pytest.mark.parametrize("folder", [".", "below/it", "with space [a] %d #"])
def test_configs_are_found_and_listed_from_any_folder(folder, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / folder)
    assert run.load_experiment("configs/toy_stage1.py", []).name == "toy_stage1"
    with pytest.raises(MissingFileError) as caught:
        run.load_experiment("configs/gone.py", [])
    listed = str(caught.value).partition("are: ")[2].split(", ")
    assert len(listed) > 10 and all(Path(path).is_file() for path in listed)


def test_a_config_here_comes_before_that_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/toy_stage1.py").write_text(
        "from lumina_jax.config import Experiment\nexperiment = Experiment(name='mine')\n"
    )
    assert run.load_experiment("configs/toy_stage1.py", []).name == "mine"
    Path("a:b.py").write_text(Path("configs/toy_stage1.py").read_text())
    assert run.load_experiment("a:b.py", []).name == "mine"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("experiment = (", "bad.py, line 1: SyntaxError"),
        ("x = 1\nexperiment = Experiment()", "bad.py, line 2: NameError"),
        ("from lumina_jax.config import *\n\nModelConfig(widht=3)", "bad.py, line 3: TypeError"),
        ("from lumina_jax.config import *\nDataConfig(batch=0)", "bad.py: data.batch=0"),
        ("import gone_package", "bad.py, line 1: ModuleNotFoundError"),
        ("", "ends neither in"),
    ],
)
def test_a_config_that_cannot_be_read_is_an_error_of_one_line(content, words, tmp_path):
    (tmp_path / "bad.py").write_text(content)
    with pytest.raises(InputError) as caught:
        run.load_experiment(str(tmp_path / "bad.py"), [])
    assert words in str(caught.value)


def test_files_of_the_repository_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert input_path("assets/toy") == str(REPO / "assets/toy")
    cfg = run.load_experiment("configs/toy_stage1.py", ["data.tokenizer=assets/toy", "vq.path=assets/toy/vq.npz"])
    assert cfg.data.tokenizer == str(REPO / "assets/toy") and cfg.vq.path == str(REPO / "assets/toy/vq.npz")
    assert cfg.out == "out/toy/stage1" and input_path("assets/gone") == "assets/gone"
    (tmp_path / "assets/toy").mkdir(parents=True)
    assert input_path("assets/toy") == "assets/toy"


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("~/x", "HOME/x"),
        ("~", "HOME"),
        ("a,~/b", "a,HOME/b"),
        ("webdataset:~/x/{0..3}.tar", "webdataset:HOME/x/{0..3}.tar"),
        ("tfds:a@~/tfds", "tfds:a@HOME/tfds"),
        ("a~/b", "a~/b"),
        ("x/~y", "x/~y"),
        ("[~/x]", "[~/x]"),
    ],
)
def test_the_home_folder_is_found_where_no_shell_expands_it(text, expanded, monkeypatch):
    monkeypatch.setenv("HOME", "/HOME")
    assert expand_home(text) == expanded.replace("HOME", "/HOME")


def test_fields_and_options_find_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = run.load_experiment("configs/toy_stage1.py", ["data.path=~/a,~/b", "out=~/o", "start=~/s", "vq.path=~/v.npz"])
    assert cfg.data.paths == (f"{tmp_path}/a", f"{tmp_path}/b")
    assert (cfg.out, cfg.start, cfg.vq.path) == (f"{tmp_path}/o", f"{tmp_path}/s", f"{tmp_path}/v.npz")
    assert run.parse(["sample", "--prompt", "x", "--out", "~/samples"]).out == f"{tmp_path}/samples"
    assert run.parse(["convert", "inspect", "~/model"]).path == f"{tmp_path}/model"
    assert run.parse(["data", "inspect", "~/a,~/b"]).path == f"{tmp_path}/a,{tmp_path}/b"


ODD = [
    "tok [bold] %d",
    "100%",
    "a#b",
    "@home",
    "{0..3}",
    "[/red]",
    "größe 🙂",
    "x'y\"z",
    "two\nlines",
    "\x1b[31mred",
    "end/",
]


@pytest.mark.parametrize("name", ODD)
def test_any_path_goes_through_fields_options_and_messages_as_it_is(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.load_experiment("configs/toy_stage1.py", [f"out={name}"]).out == name
    assert run.parse(["sample", f"--prompt={name}", "--out", name]).out == name
    assert run.parse(["convert", "inspect", name]).path == name
    assert run.main(["convert", "verify", name, name]) == 2
    error = capsys.readouterr().err.splitlines()[-1]  # before it may stand what is waited for
    assert error.startswith("run.py convert ") and error.endswith("run.py convert import") and "\x1b" not in error
    assert Path(name).name.encode("unicode_escape").decode()[:3] in error.encode("unicode_escape").decode()


@pytest.mark.parametrize("name", ODD)
def test_any_word_in_an_error_of_the_parser_stays_one_line(name, capsys):
    with pytest.raises(SystemExit):
        run.main([name])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "\x1b" not in error and "usage" not in error


def test_a_value_that_begins_with_a_dash_is_asked_for_in_the_form_that_works(capsys):
    with pytest.raises(SystemExit):
        run.main(["sample", "--prompt", "-x-"])
    assert "--prompt=VALUE" in capsys.readouterr().err
    assert run.parse(["sample", "--prompt=-x-"]).prompt == ["-x-"]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_printed_commands_are_quoted(guide):
    text = guide.read_text(encoding="utf-8")
    found = [word for _, script in blocks(text, "bash") for word in unquoted(script)]
    assert found + [word for span in spans(text) for word in unquoted(span)] == []


@pytest.mark.parametrize(("guide", "column"), [("SOURCES.md", 3), ("OMNI.md", 1)])
def test_addresses_to_type_are_quoted_in_tables(guide, column):
    rows = (
        (REPO / "lumina_jax/data" / guide)
        .read_text(encoding="utf-8")
        .partition("|---|")[2]
        .partition("\n\n")[0]
        .splitlines()
    )
    examples = [
        span for row in rows if row.startswith("| ") for span in re.findall("`([^`]+)`", row.split("|")[column])
    ]
    assert len(examples) > 8
    assert [example for example in examples if unquoted(f"run.py data export --source {example} --out x")] == []


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        ("python run.py pretokenize c.py --source webdataset:a/{00..12}.tar", ["webdataset:a/{00..12}.tar"]),
        ("cd x && .venv/bin/python run.py data export --source a/*.csv --out o", ["a/*.csv"]),
        ("python run.py sample --prompt What? --out 'a?'", ["What?"]),
        ("python run.py train c.py out=a;b", ["out=a;b"]),
        ("python run.py train c.py \\\n data.weights=(1,2)", ["data.weights=(1,2)"]),
        ("nohup python run.py train $CFG out=x > ~/log 2>&1; code=$?", []),
        ("python run.py sample --prompt 'a? {b}' --out \"$X *\"  # [c] {d}\nls *.tar", []),
    ],
)
def test_the_reader_of_printed_commands_finds_what_a_shell_expands(planted, words):
    assert unquoted(planted) == words


def child(*words: str, **environment: str) -> subprocess.Popen:
    """run.py as a process, its output in pipes."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    return subprocess.Popen([sys.executable, str(REPO / "run.py"), *words], env={**os.environ, **environment}, **pipes)


@pytest.mark.parametrize("words", ["train configs/toy_stage1.py --fields", "--help", "", "sample --help"])
def test_a_reader_that_leaves_ends_the_command_quietly(words):
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(REPO / 'run.py'))} {words} | true"
    result = subprocess.run(["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert result.stderr == "" and result.returncode in (0, 141)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("words", ["train configs/toy_stage1.py --fields", "--help", "convert inspect assets/toy"])
def test_a_disk_that_is_full_ends_the_command_in_one_line(words):
    with open("/dev/full", "w") as full:
        command = [sys.executable, str(REPO / "run.py"), *words.split()]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("reading ")]
    assert result.returncode == 2 and line.endswith("No space left on device; free space there")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_letter_can_be_printed_in_any_encoding(encoding):
    with child("train", "configs/🙂.py", PYTHONIOENCODING=encoding) as process:
        _, error = process.communicate()
    assert process.returncode == 2 and b"no config configs/" in error and b"Traceback" not in error


@pytest.fixture
def verb_that_runs(monkeypatch):
    """``verb_that_runs(function)`` plants a verb "plant" that calls ``function``, and says what an interrupt keeps."""

    def plant(function) -> None:
        def add(verbs):
            verbs.add_parser("plant").set_defaults(run=lambda options: function(), keeps="all is kept")

        monkeypatch.setattr(program, "VERBS", (add,))

    return plant


def press(signal_name: str) -> None:
    import signal

    signal.raise_signal(getattr(signal, signal_name))


def during_import() -> None:
    try:
        press("SIGINT")
    except KeyboardInterrupt:
        raise ImportError("an extension that began to load") from None


def during_cleanup() -> None:
    try:
        press("SIGINT")
    finally:
        raise RuntimeError("a cleanup that failed")


def during_a_callback() -> None:
    import time

    thing = type("Thing", (), {"__del__": lambda self: press("SIGINT")})()
    del thing
    time.sleep(10)
    raise RuntimeError("the interrupt was lost")


def with_a_note() -> None:
    with interrupted("the outer"), interrupted(lambda: "12 shards\nare kept"):
        press("SIGINT")


@pytest.mark.parametrize(
    ("function", "code", "line"),
    [
        (lambda: press("SIGINT"), 130, "interrupted; all is kept"),
        (lambda: press("SIGTERM"), 143, "terminated; all is kept"),
        (during_import, 130, "interrupted; all is kept"),
        (during_cleanup, 130, "interrupted; all is kept"),
        (during_a_callback, 130, "interrupted; all is kept"),
        (with_a_note, 130, "interrupted; 12 shards\\nare kept"),
    ],
)
def test_an_interrupt_at_any_moment_is_one_line(function, code, line, verb_that_runs, capsys):
    import signal

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    verb_that_runs(function)
    assert run.main(["plant"]) == code
    assert capsys.readouterr() == ("", f"run.py plant: {line}\n")
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


@pytest.mark.parametrize("prog", PARSERS)
def test_every_verb_says_what_an_interrupt_leaves(prog):
    assert PARSERS[prog].get_default("keeps")


BUSY = """
import sys; sys.path.insert(0, {repo!r})
import threading, time
from lumina_jax.cli import ending, program
def busy():
    print("busy", flush=True)
    lock = threading.Lock(); lock.acquire()
    {busy}
program.VERBS = (lambda verbs: verbs.add_parser("plant").set_defaults(run=lambda options: busy(), keeps="all is kept"),)
ending.leave(lambda: program.main(["plant"]))
"""


@pytest.mark.parametrize(
    ("busy", "presses", "line"),
    [
        ("time.sleep(60)", 1, b"run.py plant: interrupted; all is kept"),
        ("threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)", 1, b"interrupted; all is kept"),
        ("while True: pass", 1, b"interrupted; all is kept"),
        ("sys.path.insert(0, {modules!r}); import interrupts", 0, b"run.py plant: interrupted; all is kept"),
        ("import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)", 2, b"run.py plant: ended at once"),
    ],
)
def test_a_busy_process_ends_without_delay(busy, presses, line, tmp_path):
    import signal
    import time

    lines = (
        "import signal",
        "try: signal.raise_signal(signal.SIGINT)",
        "except KeyboardInterrupt: raise ImportError from None",
    )
    (tmp_path / "interrupts.py").write_text("\n".join(lines))
    script = BUSY.format(repo=str(REPO), busy=busy.replace("{modules!r}", repr(str(tmp_path))))
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", script], start_new_session=True, **pipes) as process:
        assert process.stdout.readline() == b"busy\n"
        for _ in range(presses):
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == ending.INTERRUPTED and line in error and b"Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "announced"),
    [
        (["pretokenize", "configs/toy_stage1.py", "--source", "toy:9"], "loading toy:9"),
        (["train", "configs/toy_stage1.py"], "loading JAX"),
        (["quickstart", "--out", "OUT"], "loading JAX"),
        (["compile", "configs/toy_stage1.py", "--topology", "v5p:4x4x4"], "loading JAX"),
        (["convert", "import", "assets/toy", "OUT"], "loading JAX"),
        (["convert", "inspect", "OUT"], "reading OUT"),
        (["convert", "verify", "OUT", "assets/gone"], "loading the converter"),
        (["data", "inspect", "OUT"], "loading OUT"),
        (["data", "export", "--source", "toy:9", "--out", "OUT"], "loading toy:9"),
        (["data", "prepare", "--source", "toy:9", "--name", "n", "--out", "OUT"], "loading toy:9"),
        (["evaluate", "--data", "OUT", "--model", "MODEL"], "loading MODEL"),
        (["refine", "OUT"], "loading JAX"),
        (["study", "seeds", "--prompt", "x"], "loading JAX"),
        (["sample", "--prompt", "x"], "loading JAX"),
    ],
)
def test_every_verb_says_what_it_waits_for_before_it_loads_anything(
    arguments, announced, tmp_path, monkeypatch, capsys
):
    class Announced(contextlib.AbstractContextManager):
        def __init__(self, what: str, **settings: object):
            raise InputError(f"waits: {what}")

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("lumina_jax.progress.waiting", Announced)
    assert run.main([word.replace("OUT", str(tmp_path / "out")) for word in arguments]) == 2
    assert capsys.readouterr().err.endswith(f"waits: {announced.replace('OUT', str(tmp_path / 'out'))}\n")


def test_ctrl_c_after_the_work_changes_nothing(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import atexit, os, signal, sys\n"
        f"sys.path.insert(0, {str(REPO)!r})\n"
        "from lumina_jax.cli import ending\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "ending.leave(lambda: print('done') or 0)\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")

"""run.py sample as a stranger uses it: bad prompts among good ones, used folders, interrupts, dialogs; with a random tiny model."""

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny import CODES, tiny_model, tiny_vocab

import run
from lumina_jax.cli import sample as room
from lumina_jax.config import DataConfig, Experiment, SampleConfig, VQConfig
from lumina_jax.conversation import TASKS, image_prompt
from lumina_jax.layout import encode_grid
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.sample import job as jobs
from lumina_jax.sample.stream import Partial
from lumina_jax.vocab import Vocab

VQ = PatchVQ(np.random.default_rng(0).integers(0, 256, (CODES, 16, 16, 3), np.uint8))
SETTINGS = SampleConfig(image_top_k=12, text_top_k=10, max_new_tokens=40, guidance=1.0, parallel="off")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def sample(model, tmp_path, monkeypatch, capsys):
    """``sample("--prompt", "w1")`` -> (exit code, stdout, stderr) of the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    data = DataConfig(size=64, patch=32, buckets=(40,))
    experiment = replace(Experiment(), data=data, sample=SETTINGS, vq=VQConfig(kind="patch"))
    monkeypatch.setattr("lumina_jax.layout.TOKENS_AROUND", 0)  # a random model does not end its turn behind a picture
    monkeypatch.setattr(room, "load_for_sampling", lambda *_: (model, tiny_vocab(), VQ, experiment))

    def call(*words: str) -> tuple[int, str, str]:
        try:
            code = run.main(["sample", *words])
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_bad_prompts_are_listed_and_the_others_painted(sample, tmp_path):
    Image.new("RGB", (64, 64)).save("good.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    lines = [
        {"prompt": "w1", "size": "32x32"},
        {"task": "depth", "image": "torn.png"},
        {"task": "depth", "image": "good.png"},
        {"prompt": "w2", "size": "33x32"},
        {"prompt": "w3", "size": "32x32", "seed": 2**80},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nnot JSON\n")
    code, out, err = sample("--prompts", "p.jsonl", "--out", "o", "--grid")
    assert code == 1 and "3 of 6 prompts were rejected, listed in o/rejects.jsonl" in err and "Traceback" not in err
    rejects = [json.loads(line) for line in (tmp_path / "o/rejects.jsonl").read_text().splitlines()]
    assert [(reject["index"], reject["line"]) for reject in rejects] == [(1, 2), (3, 4), (5, 6)]
    assert all(reject["reason"] and reject["cause"] for reject in rejects)
    names = {"000-0.png", "002-0.png", "004-0.png", "grid.png", "rejects.jsonl", "samples.jsonl"}
    assert {path.name for path in (tmp_path / "o").iterdir()} == names
    (tmp_path / "o/002-0.png").write_bytes(b"")
    lines[3]["size"] = "32x32"
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes())
    code, out, err = sample("--prompts", "p.jsonl", "--out", "o", "--resume")
    assert code == 0 and not (tmp_path / "o/rejects.jsonl").exists()
    assert sorted(word for word in out.split() if word.endswith(".png")) == [f"o/00{n}-0.png" for n in (1, 2, 3)]


def test_when_no_prompt_can_be_used_nothing_is_begun(sample, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": ""}\n{"seed": 1}\n')
    code, _, err = sample("--prompts", "p.jsonl", "--out", "o")
    assert (
        code == 2 and "2 of its 2 prompts cannot be used; the first, line 1:" in err and not (tmp_path / "o").exists()
    )
    (tmp_path / "p.txt").write_text("\n \n")
    assert sample("--prompts", "p.txt")[::2] == (2, "run.py sample: p.txt holds no prompt; write one a line\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--task detect --image a.png", "takes a text, not ''"),
        ("--task depth --image a.png --prompt w1", "takes no text, not 'w1'"),
        ("--task describe --image a.png --image a.png --image b.png", "not a picture that can be read"),
        ("--task detect --image a.png --image a.png --prompt w1", "about one picture, not 2"),
        ("--task question --prompt w1", "about a picture; give it one"),
        ("--task text --image a.png --prompt w1", "about words alone"),
    ],
)
def test_a_task_without_what_it_needs_is_refused_before_weights_are_loaded(words, message, sample, monkeypatch):
    monkeypatch.setattr(room, "load_for_sampling", None)
    Image.new("RGB", (64, 64)).save("a.png")
    code, _, err = sample(*words.split())
    assert code == 2 and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prompt w1 --tensor 3", "--tensor 3 does not divide the 8 devices of this host; give a number that does"),
        ("--prompt w1 --parallel off --window 4", "window=4: parallel=off draws one token in a pass"),
        ("--like .", ". is a folder; give a picture in it"),
        ("--chat --history gone.jsonl", "gone.jsonl: no such file of prompts or dialogs"),
    ],
)
def test_options_that_cannot_serve_are_refused_before_weights_are_loaded(words, message, sample, monkeypatch):
    monkeypatch.setattr(room, "load_for_sampling", None)
    code, _, err = sample(*words.split())
    assert code == 2 and message in err and "Traceback" not in err


def test_words_that_the_model_does_not_know_are_said(sample, monkeypatch):
    monkeypatch.setattr(Vocab, "spelt_words", lambda self, ids: ["sea", "sky"])
    err = sample("--prompt", "w1", "--size", "32x32")[2]
    assert "warning: 1 of 1 prompts have words that the model does not know (prompt 1: sea, sky)" in err


def test_results_are_never_overwritten(sample, tmp_path):
    paint = ("--size", "32x32", "--prompt")
    assert sample(*paint, "w1", "--out", "o")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    for words in (("w2",), ("w1",), ("w2", "--live"), ("w2", "--worker", "0/2")):
        code, _, err = sample(*paint, *words, "--out", "o")
        assert code == 2 and "o holds results of an earlier run" in err and "--resume" in err
    code, _, err = sample(*paint, "w2", "--out", "o", "--resume")
    assert code == 2 and "answers prompt 1 as 'w1', but now it is 'w2'" in err
    assert {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()} == before
    for number in ("", "-2", "-3"):
        assert sample(*paint, f"w{number}")[0] == 0 and (tmp_path / f"out/samples{number}/000-0.png").exists()
    code, out, _ = sample(*paint, "w-3", "--resume")
    assert (code, out) == (0, "")


def test_an_interrupt_says_what_is_kept_and_leaves_no_empty_record(sample, tmp_path, monkeypatch):
    real = jobs.paint

    def stopped(*arguments):
        yield next(real(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "paint", stopped)
    words = ("--size", "32x32", "--prompt", "w1", "--prompt", "w2", "--rows", "1", "--out", "o")
    code, out, err = sample(*words)
    assert code == 130 and "interrupted; the answers so far are in o; the same command with --out o --resume" in err
    assert out == "o/000-0.png\n"
    monkeypatch.setattr(jobs, "paint", real)
    assert sample(*words, "--resume")[:2] == (0, "o/001-0.png\n")
    monkeypatch.setattr(jobs, "paint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert sample(*words[:-1], "fresh")[0] == 130 and list((tmp_path / "fresh").iterdir()) == []


@pytest.mark.parametrize(
    "words", [("--max-new-tokens", "8"), ("--max-new-tokens", "8", "--live"), ("--free-size", "--max-new-tokens", "2")]
)
def test_a_picture_that_is_lacking_is_said_and_shown_by_the_exit_code(sample, words):
    code, _, err = sample("--prompt", "w1", "--size", "32x32", "--out", "o", *words)
    assert code == 1 and "picture" in err
    assert (
        "warning: 1 of 1 pictures will be unfinished: prompt 1 asks for one of 10 tokens, but --max-new-tokens is"
        in err
    )


def test_the_settings_are_said_once_for_each_task_and_recorded(sample, tmp_path):
    Image.new("RGB", (64, 64)).save("a.png")
    lines = [{"prompt": "w1", "size": "32x32"}, {"prompt": "w2", "size": "32x32"}, {"task": "depth", "image": "a.png"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ("--prompts", "p.jsonl", "--out", "o", "--temperature", "0.5")
    code, _, err = sample(*words)
    used = [line for line in err.splitlines() if "guidance" in line]
    assert code == 0 and used == [
        "generate: guidance 1.0, image top-k 12, text top-k 10, temperature 0.5 (by default temperature 1.0)",
        "depth: guidance 1.0, image top-k 200, text top-k 5, temperature 0.5 (by default temperature 1.0)",
    ]
    record = tmp_path / "o/samples.jsonl"
    fields = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["task"] for line in fields] == ["generate", "generate", "depth"]
    assert [line["settings"]["image_top_k"] for line in fields] == [12, 12, 200]
    assert {line["settings"]["temperature"] for line in fields} == {0.5}
    older = [{name: line[name] for name in line if name not in ("task", "settings")} for line in fields[:2]]
    record.write_text("".join(json.dumps(line) + "\n" for line in older))
    assert sample(*words, "--resume")[:2] == (0, "o/002-0.png\n")


def test_the_tasks_are_listed_with_their_settings_and_sources(sample):
    code, out, err = sample("--list-tasks")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line[:1].islower()}
    assert set(TASKS) < set(rows) and rows["edit"] == ["4.0", "2000", "5", "1.0"]
    assert out.count("    source: ") == out.count("    words: ") == len(TASKS)
    assert "Segmentic" in out and "demo_freeform.py" in out


def test_a_prompt_longer_than_the_training_is_warned_about(sample):
    (code, _, err) = sample("--prompt", "w1", "--size", "96x96", "--max-new-tokens", "60", "--out", "o")
    assert code == 0 and "1 of 1 prompts with their pictures are longer than the 40 tokens" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rows", "0"), "at least 1"),
        (("--per-prompt", "1000000000"), "at most 1,000,000"),
        (("--per-prompt", "0"), "at least 1"),
        (("--max-new-tokens", "-1"), "at least 1"),
        (("--max-new-tokens", str(10**12)), "sample.max_new_tokens"),
        (("--guidance", "nan"), "not a number"),
        (("--guidance", "1e300"), "sample.guidance"),
        (("--temperature", "0"), "sample.temperature"),
        (("--temperature", "1e-300"), "sample.temperature"),
        (("--top-k", "0"), "at least 1"),
        (("--top-k", str(10**12)), "sample.image_top_k"),
        (("--min-p", "2"), "sample.min_p"),
        (("--window", "1000000"), "sample.window"),
        (("--image", "w1.png"), "--image goes with"),
        (("--live", "--resume"), "--resume continues"),
        (("--raw", "--max-new-tokens", "1000000"), "GB are left"),
    ],
)
def test_numbers_out_of_range_are_refused_before_work(sample, tmp_path, monkeypatch, words, message):
    monkeypatch.setattr("lumina_jax.sample.memory.available_memory", lambda _: 10**8)
    code, _, err = sample("--prompt", "w1", *words)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "out/samples/samples.jsonl").exists()


@pytest.fixture
def dialog(sample, monkeypatch, tmp_path):
    """``dialog(lines, "--size", ...)`` -> what ``sample`` returns for a dialog; the model paints at a forced size, else says w3."""

    def answer(model, prompts, key, cfg, vocab, *, sizes, **options):
        (size,) = sizes
        said = np.array([vocab.id_of("w3")])
        yield Partial(0, said if size is None else encode_grid(np.zeros(size, int), vocab), 1, True)

    monkeypatch.setattr("lumina_jax.sample.live.stream", answer)

    def hold(lines: list[str], *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        return sample("--chat", "--out", "o", *words)

    return hold


def test_a_dialog_goes_on_after_a_missing_picture_and_ends_at_the_end(dialog, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "my cat.png")
    code, out, err = dialog(['@"my cat.png" w1', "@gone.png w2", "mail a@b.com", "\udcff", ""])
    assert (code, out) == (0, "w3\nw3\n")
    assert "gone.png is not a picture that can be read: there is no such file; the dialog goes on" in err
    assert "half a surrogate pair" in err
    (line,) = (tmp_path / "o/transcript.jsonl").read_text().splitlines()
    assert json.loads(line)["conversations"][0] == {"from": "human", "value": "<|image|> w1"}
    assert json.loads(line)["image"] == ["turn0-shown-0.png"] and Image.open(tmp_path / "o/turn0-shown-0.png").size == (
        64,
        64,
    )


def test_a_dialog_has_commands_and_messages_of_several_lines(dialog, tmp_path):
    request = "Generate an image of 32x64 according to the following prompt:"
    lines = ["/size", "/size 33x32", "/size 64x32", "/paint w1 \\", " w2", "/nope", "/paint", "/clear now", "//w4"]
    lines += ['"""' + request, "", 'w1"""', f"{request}\\", "w2", "/save talk.jsonl", "/save talk.html", "/save o.txt"]
    code, out, err = dialog([*lines, "/clear", "w5", "/load talk.jsonl", "w6", "/help", "", "w7"], "--size", "32x32")
    painted = [f"o/turn{turn}-0.png" for turn in (0, 2, 3)]
    assert code == 0 and out.split() == [painted[0], "w3", *painted[1:], "talk.jsonl", "talk.html", "w3", "w3"]
    assert "paints 32x32\n" in err and "paints 64x32\n" in err and "a dialog of 4 turns goes on" in err
    for message in (
        "multiples of 32",
        "no command /nope",
        "/paint needs a CAPTION",
        "/clear takes nothing",
        "o.txt ends",
    ):
        assert f"{message}" in err
    assert err.count("; the dialog goes on") == 5 and "/load FILE" in err
    first, second, third = map(json.loads, (tmp_path / "o/transcript.jsonl").read_text().splitlines())
    values = [message["value"] for message in first["conversations"]]
    assert values[::2] == [image_prompt(64, 32, "w1\nw2"), "/w4", f"{request}\n\nw1", f"{request}\nw2"]
    assert values[1::2] == ["<|image|>", "w3", "<|image|>", "<|image|>"]
    assert [Image.open(tmp_path / "o" / file).size for file in first["image"]] == [(64, 32), (32, 64), (32, 64)]
    assert len(second["conversations"]) == 2 and third["conversations"][:-2] == first["conversations"]
    assert json.loads((tmp_path / "talk.jsonl").read_text())["image"] == [f"o/{file}" for file in first["image"]]
    code, _, err = dialog(["w8"])
    assert code == 2 and "o holds results of an earlier run" in err
    code, out, err = dialog(["w8"], "--history", "talk.jsonl", "--out", "p")
    assert (code, out) == (0, "w3\n") and "a dialog of 4 turns goes on" in err
    assert "../o/turn0-0.png" in json.loads((tmp_path / "p/transcript.jsonl").read_text())["image"]


def test_a_dialog_goes_on_after_names_that_no_file_has(dialog, tmp_path):
    refused = [
        "/load ~no-such-user/a.jsonl",
        "/load a\0.jsonl",
        "@~no-such-user/a.png w2",
        "/save a\0.jsonl",
        "/save /dev/null/a.html",
    ]
    refused += [f"/save {'a' * 300}.jsonl", "/save gone.jsonl"]
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    code, out, err = dialog(["w1", *refused, "w3"])
    assert (code, out) == (0, "w3\nw3\n") and err.count("; the dialog goes on") == len(refused)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gone.jsonl", "o"]
    code, _, err = dialog([], "--history", "~no-such-user/a.jsonl", "--out", "p")
    assert code == 2 and "no such file" in err


def test_codes_of_another_model_are_refused_when_they_are_loaded(dialog, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<|image|> w1"}, {"from": "gpt", "value": "w2"}]
    record = {"conversations": turns, "image": "a.png", "images": None, "codes": [[[4321] * 4] * 4]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (tmp_path / "b.jsonl").write_text(json.dumps(record | {"codes": None}))
    code, out, err = dialog(["/load a.jsonl", "w1", "/load b.jsonl", "w3"])
    assert (code, out) == (0, "w3\nw3\n")
    assert "a.jsonl, line 1: the codes of a.png: image codes from 4321 to 4321" in err and "1 turns goes on" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--chat", "--prompt", "w1"), "--chat reads its messages"),
        (("--history", "a.jsonl", "--prompt", "w1"), "--history goes with --chat"),
        (("--chat", "--history", "a.jsonl"), "no such file"),
        (("--chat", "--size", "33x32"), "multiples of 32"),
    ],
)
def test_a_dialog_that_cannot_begin_leaves_nothing(sample, words, message, tmp_path):
    code, _, err = sample(*words)
    assert code == 2 and message in err and not (tmp_path / "out").exists()

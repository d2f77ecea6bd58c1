"""Prompts at the border: any script, length and emptiness; files of prompts as editors write them; pictures named in a dialog."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import CODES, tiny_vocab

from lumina_jax.config import DataConfig, SampleConfig
from lumina_jax.conversation import SEAM, tokenize
from lumina_jax.layout import grid_tokens
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.sample.files import open_image, pictures_in, read_lines
from lumina_jax.sample.prompt import STRETCH, PromptBuilder
from lumina_jax.vocab import Vocab

VOCAB = tiny_vocab()
VQ = PatchVQ(np.random.default_rng(0).integers(0, 256, (CODES, 16, 16, 3), np.uint8))
CFG = SampleConfig(max_new_tokens=40)
BUILDER = PromptBuilder(VQ, VOCAB, DataConfig(size=64, patch=32, buckets=(30,)))

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(
    "text",
    [
        "中文 的 提示词",
        "\u0645\u0631\u062d\u0628\u0627",
        "e\u0301 \U0001f600",
        "a\u2028b\x85c\x0cd",
        "a" * 5000,
        "<racm3:break> <|image|>",
        "\x07\x1b[2J",
    ],
)
def test_a_prompt_of_any_letters_asks_for_its_picture(text):
    prompt = BUILDER.generate(text, (64, 32), CFG)
    assert prompt.text == text and prompt.size == (2, 4) and prompt.picture == grid_tokens(2, 4)
    assert VOCAB.boi not in prompt.ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the prompt is empty"),
        (" \t\n\u2028 ", "the prompt is empty"),
        ("caf\udce9", "half a surrogate pair"),
        ("a\0b", "NUL"),
    ],
)
def test_a_prompt_that_is_no_text_is_refused(text, message):
    for ask in (lambda: BUILDER.generate(text, (64, 64), CFG), lambda: BUILDER.message(text, [], CFG)):
        with pytest.raises(ValueError, match=message):
            ask()


def test_a_prompt_counts_with_its_picture_and_is_refused_beyond_the_longest(request):
    builder = replace(BUILDER, vocab=Vocab.load(request.config.rootpath / "assets/toy"))
    empty = builder.generate("a", (64, 64), CFG)
    assert (builder.trained, builder.longest, empty.length) == (30, 30 * STRETCH, len(empty.ids) + grid_tokens(4, 4))
    words = 1 + builder.longest - empty.length
    longest = builder.generate("a" + " a" * (words - 1), (64, 64), CFG)
    assert longest.length <= builder.longest
    for refused in (
        lambda: builder.generate("a" + " a" * 3 * words, (64, 64), CFG),
        lambda: builder.message("a" + " a" * 3 * words, [], CFG),
        lambda: builder.task("edit", "a" + " a" * 3 * words, [Image.new("RGB", (64, 64))], CFG),
        lambda: builder.from_record({"prompt": "\u4e2d" * 3 * words}, Path(), lambda task: CFG),
    ):
        with pytest.raises(
            ValueError, match=r"tokens with its picture; .* trained on 30 and is given up to 240: shorten it"
        ):
            refused()
    assert PromptBuilder(VQ, VOCAB, positions=100).longest == 100 * STRETCH


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.txt", b"w1\r\n\r\nw2\r\n", ["w1", "w2"]),
        ("a.txt", "\ufeffw1\nw2".encode(), ["w1", "w2"]),
        ("a.txt", "\ufeffw1\r\nw\u00e9\n".encode("utf-16-le"), ["w1", "w\u00e9"]),
        ("a.txt", "w1\u2028w2\x85w3\x0bw4\x1cw5\n".encode(), ["w1\u2028w2\x85w3\x0bw4\x1cw5"]),
        ("a.prompts", b'# {"prompt": "w1"}\n', ['# {"prompt": "w1"}']),
        ("a.jsonl", '\ufeff{"prompt": "w1\u2029w2"}\n"w3"\n'.encode(), ["w1\u2029w2", "w3"]),
        ("a.JSONL", b'{"prompt": "w\\u0085"}\n', ["w\x85"]),
        ("a.json", b'[\n  "w1",\n  {"prompt": "w2"}\n]\n', ["w1", "w2"]),
    ],
)
def test_a_file_of_prompts_ends_lines_at_line_ends_only(tmp_path, name, content, prompts):
    (tmp_path / name).write_bytes(content)
    assert [line.record()["prompt"] for line in read_lines(tmp_path / name)] == prompts


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "w1"', "no JSON"),
        ("[1]", "expected an object"),
        ("null", "expected an object"),
        ("[" * 5000, "nested"),
        ('{"prompt": "w1", "prompt": "w2"}', "twice"),
        ('{"prompt": "\\ud83d"}', "half a surrogate"),
        ('{"seed": 1' + "0" * 5000 + "}", "number"),
    ],
)
def test_a_line_that_is_no_record_is_an_error_of_its_own(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(f'"w1"\n{line}\n"w2"\n')
    first, wrong, last = read_lines(tmp_path / "a.jsonl")
    assert (first.record(), last.record(), wrong.number) == ({"prompt": "w1"}, {"prompt": "w2"}, 2)
    with pytest.raises(ValueError, match=message):
        wrong.record()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(seed=True), "seed is True"),
        (dict(seed=1.5), "seed is 1.5"),
        (dict(seed="3"), "seed is '3'"),
        (dict(size=64), "'64' is not WIDTHxHEIGHT"),
        (dict(size="²x64"), "is not WIDTHxHEIGHT"),
        (dict(task=["depth"]), "no task"),
        (dict(task="depth", image=3), "image a file"),
        (dict(task="depth", images="a.png"), "images a list"),
        (dict(task="depth", image="a.png", images=["a.png"]), "both given"),
        (dict(task="depth", image="a.png", size="64x64"), "size goes with"),
        (dict(task="depth", image="https://a.b/c.png"), "download it first"),
        (dict(task="depth", image="c\0.png"), "not a picture"),
        (dict(task="depth", image=""), "not a picture"),
    ],
)
def test_a_record_with_a_wrong_field_is_refused_with_its_reason(tmp_path, fields, message):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    record = ({} if "task" in fields else {"prompt": "w1"}) | fields
    with pytest.raises(ValueError, match=message):
        BUILDER.from_record(json.loads(json.dumps(record)), tmp_path, lambda task: CFG)


@pytest.mark.parametrize("seed", [0, 2**63, 10**40, -5, None])
def test_a_seed_is_any_whole_number(seed):
    assert BUILDER.from_record({"prompt": "w1", "seed": seed, "image": None}, Path(), lambda task: CFG).seed == seed


def test_a_pipe_is_no_picture_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="a pipe or a device"):
            open_image(file)


@pytest.mark.parametrize(
    ("line", "text", "files"),
    [
        ("what is there?", "what is there?", []),
        ("@cat.png what is there?", "<|image|> what is there?", ["cat.png"]),
        ("mail a@b.com or @@me", "mail a@b.com or @me", []),
        ('@"my cat.png" and @\'b "c".png\'', "<|image|> and <|image|>", ["my cat.png", 'b "c".png']),
        (r"@my\ cat.png, @C:\dir\a.png", "<|image|> <|image|>", ["my cat.png,", r"C:\dir\a.png"]),
        ("compare @here.png, please", "compare <|image|>, please", ["here.png"]),
        ("@ 5 o'clock <|image|>", "@ 5 o'clock <|image|>", []),
        ("\u4e2d @\u732b.png", "\u4e2d <|image|>", ["\u732b.png"]),
    ],
)
def test_pictures_of_a_line_are_words_that_begin_with_at(line, text, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here.png").touch()
    message, found = pictures_in(line)
    assert message.replace(SEAM, "") == text and found == [Path(file) for file in files]
    pictures = [np.zeros((2, 2), int)] * len(files)
    ids, _ = tokenize([(message, None)], pictures, VOCAB)
    assert (ids == VOCAB.boi).sum() == len(files)

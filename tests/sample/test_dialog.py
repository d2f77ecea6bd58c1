"""Dialogs as data: Lumina's form read and written, whole histories as prompts, and what is refused of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny import CODES, tiny_vocab

from lumina_jax.config import DataConfig, SampleConfig
from lumina_jax.conversation import SEAM, image_prompt, literal, requested_size, tokenize
from lumina_jax.data.sources import open_source
from lumina_jax.layout import grid_tokens
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.sample.dialog import Dialog, DialogPicture, dialog_record, parse_dialog
from lumina_jax.sample.prompt import PromptBuilder
from lumina_jax.sample.transcript import Transcript, page

VOCAB = tiny_vocab()
VQ = PatchVQ(np.random.default_rng(0).integers(0, 256, (CODES, 16, 16, 3), np.uint8))
CFG = SampleConfig()
BUILDER = PromptBuilder(VQ, VOCAB, DataConfig(size=64, patch=32, buckets=(60,)))
PAINT = "Generate an image of 64x32 according to the following prompt:\nw1"

pytestmark = pytest.mark.smoke


@pytest.fixture
def folder(tmp_path):
    """A folder with pictures of three sizes, of which only 64x64 was trained."""
    for name, size in (("small", (32, 32)), ("square", (64, 64)), ("large", (100, 100))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    return tmp_path


def talk(*texts: str, **fields) -> dict:
    """A line of a prompts file."""
    speakers = ("human", "gpt") * len(texts)
    messages = [{"from": speaker, "value": text} for speaker, text in zip(speakers, texts, strict=False)]
    return {"conversations": messages} | fields


def ask(record: dict, folder):
    return BUILDER.from_record(json.loads(json.dumps(record)), folder, lambda task: replace(CFG, text_top_k=len(task)))


def test_a_line_is_what_tokenize_makes_of_its_turns(folder):
    codes = np.arange(8).reshape(2, 4) % CODES
    Image.new("RGB", (64, 32)).save(folder / "known.png")
    texts = ("w1 <|image|>", "w2 <|image|><|image|>", "w3")
    files = ["large.png", "small.png", "known.png"]
    prompt = ask(talk(*texts, image=files, codes=[None, None, codes.tolist()], seed=7), folder)
    # What a person shows is cropped to a trained size; a picture in an answer keeps its own.
    shown = [VQ.encode(np.full((1, side, side, 3), [1.0, -1, -1], np.float32))[0] for side in (64, 32)]
    expected, _ = tokenize([texts[:2], (texts[2], None)], [*shown, codes], VOCAB)
    assert prompt.ids.tolist() == expected.tolist()
    assert (prompt.text, prompt.size, prompt.picture, prompt.seed) == ("w3", None, 0, 7)
    turns, pictures = [texts[:2], (texts[2], None)], [Image.open(folder / file) for file in files[:2]]
    assert BUILDER.history(turns, [*pictures, codes], CFG).ids.tolist() == expected.tolist()


def test_pictures_without_symbols_stand_first(folder):
    record = talk("w1", "w2", "w3", images=["small.png", "square.png"])
    assert (
        ask(record, folder).ids.tolist()
        == ask(talk("<|image|> <|image|> w1", "w2", "w3", image=record["images"]), folder).ids.tolist()
    )


@pytest.mark.parametrize(
    ("texts", "fields", "size", "task"),
    [
        ((PAINT,), {}, (2, 4), "generate"),
        (("w1", "w2", PAINT), {"task": "generate"}, (2, 4), "generate"),
        (("w1", "w2", PAINT), {"size": "64x32"}, (2, 4), "generate"),
        (("w1", "w2", "paint it"), {"size": "32x64"}, (4, 2), "generate"),
        (("w1", "w2", "paint it"), {"task": "generate"}, (4, 4), "generate"),
        (("<|image|> w1", "w2", "make it red"), {"task": "edit", "image": "square.png"}, (4, 4), "edit"),
        (("<|image|> w1", "w2", PAINT), {"task": "describe", "image": "square.png"}, None, "describe"),
    ],
)
def test_the_last_message_says_what_is_painted(texts, fields, size, task, folder):
    prompt = ask(talk(*texts, **fields), folder)
    assert (prompt.size, prompt.picture) == (size, grid_tokens(*size) if size else 0)
    assert prompt.cfg.text_top_k == len(task)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (talk("w1", "w2"), "ends with an answer; end it with the human message"),
        (talk(), "not a list of at least one message"),
        ({"conversations": "w1"}, "not a list"),
        ({"conversations": [{"from": "gpt", "value": "w1"}]}, "message 0 is from 'gpt'"),
        (talk("w1", "w2", " "), "the prompt is empty"),
        (talk("w1", None, "w2"), "the value of message 1"),
        (talk("w1", prompt="w2"), "prompt and conversations are both given"),
        (talk("w1 <|image|>"), "1 <|image|>, but 0 images"),
        (talk("w1", image="gone.png"), "no such file"),
        (talk("w1", image="small.png", images=["small.png"]), "both given"),
        (talk("w1", image=3), "a file or a list of files"),
        (talk("w1", image=["small.png"], codes=[]), "codes is no list of 1"),
        (talk("w1", image=["small.png"], codes=[[[1], [1, 2]]]), "no rows of whole numbers"),
        (talk("w1", image=["small.png"], codes=[[[True]]]), "no rows of whole numbers"),
        (talk("w1", image=["small.png"], codes=[[[-1, 0], [0, 0]]]), "negative or too large"),
        (talk("w1", image=["small.png"], codes=[[[99, 0], [0, 0]]]), "image codes from 0 to 99"),
        (talk("w1", image=["small.png"], codes=[[[0, 0]] * 4]), "32x32 px, but its codes are those of 32x64"),
        (talk(PAINT, size="64x64"), "size is 64x64, but the last message asks for 64x32"),
        (talk("w1", size="33x64"), "multiples of 32"),
        (talk("w1", size="64x64", task="question"), "size goes with"),
        (talk("w1", task="depth"), "is about a picture"),
        ({"prompt": "w1", "codes": []}, "codes go with conversations"),
        (talk(*["<|image|>"] * 31, image=["square.png"] * 31), "leave earlier turns out"),
    ],
)
def test_a_dialog_that_cannot_be_answered_is_refused_with_its_reason(record, message, folder):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        ask(record, folder)


def test_what_is_kept_is_read_again_as_a_dialog_and_as_training_data(folder):
    grids = [np.full((2, 2), 3), np.full((4, 4), 5)]
    pictures = tuple(DialogPicture(Image.new("RGB", (16 * len(grid),) * 2), grid) for grid in grids)
    dialog = Dialog(((literal("w1 <|image|> \u2028 <b>"), "<|image|>w2"), ("w3 <|image|>", "")), pictures)
    transcript = Transcript(folder)
    transcript.keep(dialog, [folder / "small.png", folder / "square.png"])
    transcript.begin(Dialog(), ())
    transcript.keep(Dialog((("w5", "w6"),)), ())
    first, second = (folder / "transcript.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert first == json.dumps(dialog_record(dialog, ["small.png", "square.png"]), ensure_ascii=False)
    turns, files, codes = parse_dialog(json.loads(first))
    assert tuple(turns) == dialog.turns and files == ["small.png", "square.png"]
    assert [grid.tolist() for grid in codes] == [grid.tolist() for grid in grids]
    assert BUILDER.dialog(json.loads(first), folder).turns == dialog.turns
    assert open_source(str(folder / "transcript.jsonl"))[1].turns == [("w5", "w6")] and "codes" not in second
    html = page(dialog)
    assert html.count("<img") == 2 and "&lt;|image|&gt;" in html and "<b>" not in html and SEAM not in html


def test_a_line_saved_behind_a_link_finds_its_pictures(folder):
    (folder / "far/away").mkdir(parents=True)
    (folder / "link").symlink_to("far/away")
    transcript = Transcript(folder)
    transcript.keep(
        Dialog((("w1", "<|image|>"),), (DialogPicture(Image.new("RGB", (32, 32)), np.zeros((2, 2), int)),)),
        [folder / "small.png"],
    )
    transcript.save(folder / "link/a.jsonl")
    record = json.loads((folder / "link/a.jsonl").read_text())
    assert (folder / "link" / record["image"][0]).samefile(folder / "small.png")
    assert BUILDER.dialog(record, folder / "link").turns == (("w1", "<|image|>"),)


def test_only_what_a_session_wrote_is_written_over(tmp_path):
    transcript = Transcript(tmp_path)
    with pytest.raises(ValueError, match="no turns yet"):
        transcript.save(tmp_path / "a.jsonl")
    transcript.keep(Dialog((("w1", "w2"),)), ())
    for name in ("a.jsonl", "a.html", "a.jsonl"):
        transcript.save(tmp_path / name)
    (tmp_path / "mine.html").touch()
    with pytest.raises(FileExistsError, match="give another name"):
        transcript.save(tmp_path / "mine.html")
    with pytest.raises(ValueError, match=r"neither in \.jsonl"):
        transcript.save(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (image_prompt(64, 128, "w1"), (64, 128)),
        ("Generate an image of 8x9", (8, 9)),
        ("generate an image of 8x9", None),
        ("Generate an image of 8x9e", None),
        ("Generate an image of " + "9" * 5000 + "x9", None),
        ("What is an image of 8x9?", None),
    ],
)
def test_the_words_of_a_request_name_its_size(message, size):
    assert requested_size(message) == size

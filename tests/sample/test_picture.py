"""Laws of reading answers: text, whole images, broken images, contact sheets."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from goldens_at import on_goldens
from PIL import Image, ImageFont
from tiny import CODES, tiny_vocab

from lumina_jax.layout import encode_grid
from lumina_jax.pictures.labels import wrapped
from lumina_jax.sample.picture import CAPTION_LINES, FRAME, Broken, grid, pictures, split, spoken, text
from lumina_jax.vocab import Vocab

VOCAB = tiny_vocab()
WIDE = np.arange(8).reshape(2, 4)
TALL = np.arange(24).reshape(6, 4) % CODES


class GreySquares:
    """Each code is a 2 x 2 patch of its own grey."""

    def decode(self, codes):
        grey = jnp.repeat(jnp.repeat(codes / CODES * 2 - 1, 2, axis=1), 2, axis=2)
        return jnp.repeat(grey[..., None], 3, axis=-1)


@pytest.mark.smoke
def test_text_and_images_come_back_in_order():
    ids = np.concatenate([[20, 21], encode_grid(WIDE, VOCAB), [22], encode_grid(TALL, VOCAB), encode_grid(WIDE, VOCAB)])
    pieces = split(ids, VOCAB)
    assert [type(piece) for piece in pieces] == [str, np.ndarray, str, np.ndarray, np.ndarray]
    assert (pieces[0], pieces[2]) == ("w0 w1", "w2")
    assert all((piece == codes).all() for piece, codes in zip(pieces[1::2], (WIDE, TALL), strict=True))
    assert text(ids, VOCAB) == "w0 w1<|image|>w2<|image|><|image|>"
    images = pictures(ids, GreySquares(), VOCAB)
    assert [image.size for image in images] == [(8, 4), (8, 12), (8, 4)]
    assert images[0].getpixel((2, 0)) == (21, 21, 21)


def test_no_tokens_are_no_pieces():
    assert split(np.array([], np.int32), VOCAB) == []


def test_broken_images_say_why_and_other_images_are_read():
    whole = encode_grid(WIDE, VOCAB)
    cut, short, wrong = whole[:6], np.delete(whole, 4), np.where(np.arange(len(whole)) == 5, 30, whole)
    ids = np.concatenate([cut, whole, short, [20], wrong, whole[:1]])
    pieces = split(ids, VOCAB)
    assert [type(piece) for piece in pieces] == [Broken, np.ndarray, Broken, str, Broken, Broken]
    reasons = [piece.reason for piece in pieces if isinstance(piece, Broken)]
    for reason, message in zip(
        reasons, ("unfinished", "14 tokens, but has 13", "token 5 .* is 30", "unfinished"), strict=True
    ):
        assert np.any([word in reason for word in (message, message.replace(" .* ", " of the image "))])
    stray = np.concatenate([ids[:-1], [20, VOCAB.code_ids[3], 21], whole[:1]])
    message, grids = spoken(stray, VOCAB)
    assert message == "<|image|>w0w0 w1" and [grid.tolist() for grid in grids] == [WIDE.tolist()]
    assert (pieces[0].ids == cut).all()
    assert len(pictures(ids, GreySquares(), VOCAB)) == 1
    assert text(ids, VOCAB) == "<|image|>w0"


def test_an_answer_with_a_nul_does_not_end_its_dialog(monkeypatch):
    monkeypatch.setattr(Vocab, "decode", lambda self, ids: "a\0b")
    assert spoken(np.array([20]), VOCAB) == ("ab", [])


@on_goldens("packing")
def test_text_equals_the_originals(goldens):
    vocab = Vocab.load(goldens / "tokenizer" / "hf_tokenizer")
    for case in json.loads((goldens / "packing" / "decode_ids.json").read_text()):
        assert text(np.array(case["tokens"]), vocab) == case["text"]
        grids = [piece for piece in split(np.array(case["tokens"]), vocab) if isinstance(piece, np.ndarray)]
        assert len(grids) == len(case["images"])


def test_a_sheet_shows_every_image_separately_with_its_caption():
    images = [
        Image.new("RGB", size, color) for size, color in (((40, 20), "red"), ((20, 60), "green"), ((30, 30), "blue"))
    ]
    bare, captioned = grid(images, 2), grid(images, 2, ["a red thing", "", "blue"])
    assert bare.size == (8 + 2 * 48, 8 + 2 * 68)
    assert captioned.size[0] == bare.size[0] and captioned.size[1] > bare.size[1]
    for sheet in (bare, captioned):
        colors = {color: count for count, color in sheet.getcolors(100_000)}
        areas = [image.width * image.height for image in images]
        assert [colors[image.getpixel((0, 0))] for image in images] == areas
    assert grid(images, 5).width == 8 + 3 * 48


@pytest.mark.parametrize(
    "caption",
    ["\u4e2d\u6587" * 3000, "a" * 9000, "a\nb\tc\u2028d\x00\x1b[2J", "\U0001f600 e\u0301 \u202eabc", "\udcff", " "],
)
def test_a_caption_of_any_letters_stays_in_its_cell(caption):
    images = [Image.new("RGB", (40, 20), color) for color in ("red", "green")]
    sheet, bare = grid(images, 2, [caption, "b"]), grid(images, 2, ["", "b"])
    assert sheet.width == bare.width and sheet.height < 20 + 3 * 8 + (CAPTION_LINES + 1) * 14
    neighbour = (8 + 48, 28, 8 + 2 * 48, 28 + 14)
    assert sheet.crop(neighbour).tobytes() == bare.crop(neighbour).tobytes()


def test_a_white_picture_has_an_edge_and_lines_fit_by_their_font():
    white = Image.new("RGB", (20, 20), "white")
    sheet = grid([white], 1)
    frame = [sheet.getpixel(corner) for corner in ((7, 7), (28, 7), (7, 28), (28, 28))]
    assert frame == [FRAME] * 4 and sheet.crop((8, 8, 28, 28)).tobytes() == white.tobytes()
    font = ImageFont.load_default(12)
    for width in (100, 128, 180):
        lines = wrapped("encoded and decoded WWWWWWWW MMMMMMMM iiiiiiii llllllll", width, 9, font)
        assert all(font.getlength(line) <= width for line in lines)
    assert " ".join(wrapped("ill " * 9, 120, 9, font)).split() == ["ill"] * 9


def test_wrong_sheets_are_refused():
    image = Image.new("RGB", (8, 8))
    for arguments, message in (
        (([], 1), "at least 1"),
        (([image], 0), "at least 1"),
        (([image], 1, ["a", "b"]), "2 captions"),
    ):
        with pytest.raises(ValueError, match=message):
            grid(*arguments)

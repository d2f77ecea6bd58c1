"""How a picture was made, in its file: in PNG, JPEG and WebP, in any script, beside pixels that stay the same."""

import io

import numpy as np
import pytest
from PIL import Image

from lumina_jax.errors import InputError
from lumina_jax.pictures.metadata import EXIF_BYTES, KEY, in_lines, metadata_options, read_metadata, save_picture

PROMPT = "猫 🐱 naïve\nsecond line \N{RIGHT-TO-LEFT MARK}שלום"
MADE = {"prompt": PROMPT, "seed": -(2**80), "size": "32x16", "settings": {"guidance": 4.0, "top": None}, "ids": "eJw="}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_what_is_written_is_read(format):
    stream, plain = io.BytesIO(), io.BytesIO()
    PICTURE.save(stream, format, **metadata_options(MADE, format))
    PICTURE.save(plain, format)
    assert read_metadata(stream.getvalue(), "p") == MADE
    with Image.open(stream) as with_text, Image.open(plain) as without:
        assert (np.asarray(with_text) == np.asarray(without)).all()
    with pytest.raises(InputError, match="does not say how it was made"):
        read_metadata(plain.getvalue(), "p")


def test_people_read_the_prompt_and_the_settings(tmp_path):
    save_picture(PICTURE, tmp_path / "p.png", MADE | {"size": None})
    with Image.open(tmp_path / "p.png") as image:
        assert image.text["parameters"].startswith(
            PROMPT + "\nSeed: -1208925819614629174706176, Size: 32x16, Guidance: 4.0"
        )
    assert "guidance  4.0" in in_lines(MADE) and "eJw=" not in in_lines(MADE)


def test_a_comment_that_no_jpeg_can_hold_goes_without_the_tokens():
    stream = io.BytesIO()
    PICTURE.save(stream, "JPEG", **metadata_options(MADE | {"ids": "x" * EXIF_BYTES}, "JPEG"))
    assert read_metadata(stream.getvalue(), "p") == {name: value for name, value in MADE.items() if name != "ids"}


def test_what_is_no_metadata_is_refused_in_a_line():
    for text in ("{", "[]", "1", "[" * 10**5, '{"seed": ' + "9" * 5000 + "}"):
        options = metadata_options(MADE)
        stream = io.BytesIO()
        options["pnginfo"].chunks.clear()
        options["pnginfo"].add_text(KEY, text)
        PICTURE.save(stream, "PNG", **options)
        with pytest.raises(InputError, match="p does not say"):
            read_metadata(stream.getvalue(), "p")
    for content in (b"", b"no picture", stream.getvalue()[:60]):
        with pytest.raises(InputError, match="p is not a picture") as refused:
            read_metadata(content, "p")
        assert "object at" not in str(refused.value)


@pytest.mark.parametrize("settings", ["x", [1], None, 5])
def test_a_line_of_what_strangers_wrote_is_one_line(settings):
    lines = in_lines({"prompt": "a\nseed  1\x1b[31m", "settings": settings, "n" * 1000: 1}).split("\n")
    assert len(lines) == 2 + bool(settings) and not any(map(set("\x1b\r").intersection, lines))
    assert lines[0].rstrip().endswith("a\\nseed  1\\x1b[31m") and len(lines[0]) < 100


def test_more_pixels_than_are_read_are_refused_in_a_line(monkeypatch):
    stream = io.BytesIO()
    PICTURE.save(stream, "PNG", **metadata_options(MADE))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"p is not a picture that can be read: .*Store it smaller"):
        read_metadata(stream.getvalue(), "p")

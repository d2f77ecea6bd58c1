"""Pictures <-> arrays: crops equal to the original's, transparency and rounding."""

import json

import numpy as np
import pytest
from goldens_at import on_goldens
from PIL import Image

from lumina_jax import layout
from lumina_jax.pictures import pixels


def noise(width, height, mode="RGB", seed=0):
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8))


def share(draw):
    """The offset share that makes crop() take the recorded ``value`` out of low..high inclusive."""
    return (draw["value"] + 0.5) / (draw["high"] + 1)


@on_goldens("crop")
def test_crops_equal_the_originals_pixel_by_pixel(goldens):
    folder = goldens / "crop"
    for case in json.loads((folder / "pixels.json").read_text()):
        image = Image.open(folder / case["in"])
        size = layout.best_crop(image.size, layout.crop_sizes(case["target"]))
        cropped = pixels.crop(image, size, (share(case["crop_left"]), share(case["crop_upper"])))
        expected = Image.open(folder / case["out"])
        assert cropped.mode == case["mode"] and cropped.size == expected.size == tuple(case["out_size"])
        assert (np.asarray(cropped) == np.asarray(expected)).all(), case["name"]


@on_goldens("crop")
def test_cover_resizes_as_often_and_to_the_sizes_of_the_original(goldens, monkeypatch):
    calls = []

    def resize(image, size, resample):
        calls.append((size, resample))
        return Image.new("L", size)

    monkeypatch.setattr(Image.Image, "resize", resize)
    for case in json.loads((goldens / "crop" / "chosen.json").read_text()):
        for expected in (case[target] for target in ("512", "768", "1024")):
            calls.clear()
            pixels.cover(Image.new("L", (case["w"], case["h"])), tuple(expected["crop"]))
            filters = [resample for _, resample in calls]
            assert filters == [Image.Resampling.BOX] * expected["n_box_halvings"] + [Image.Resampling.BICUBIC]
            sizes = [[case["w"], case["h"]]] + [list(size) for size, _ in calls]
            assert sizes[-2:] == [expected["after_halving"], expected["after_bicubic"]]


@pytest.mark.smoke
def test_random_crop_is_deterministic_and_uniform():
    ramp = Image.fromarray(np.tile(np.arange(38, dtype=np.uint8), (32, 1)))
    draw = [
        np.asarray(pixels.random_crop(ramp, (32, 32), rng))[0, 0] for rng in map(np.random.default_rng, range(1400))
    ]
    repeated = np.asarray(pixels.random_crop(ramp, (32, 32), np.random.default_rng(5)))[0, 0]
    assert repeated == draw[5]
    counts = np.bincount(draw)
    # Seven offsets, 200 expected at each; the bound is five standard deviations.
    assert len(counts) == 7 and (np.abs(counts - 200) < 5 * np.sqrt(200 * 6 / 7)).all()


def test_random_crop_draws_the_column_first():
    image = noise(40, 36)
    rng = np.random.default_rng(3)
    expected = pixels.crop(image, (32, 32), (rng.random(), rng.random()))
    assert (np.asarray(pixels.random_crop(image, (32, 32), np.random.default_rng(3))) == np.asarray(expected)).all()


def test_crop_lies_where_its_offset_shares_say():
    image = noise(37, 32)
    for left in range(6):
        crop = np.asarray(pixels.crop(image, (32, 32), ((left + 0.5) / 6, 0.0)))
        assert (crop == np.asarray(image)[:, left : left + 32]).all()
    last = np.nextafter(1.0, 0.0)
    assert (np.asarray(pixels.crop(image, (32, 32), (last, last))) == np.asarray(image)[:, 5:]).all()


def test_whiten_puts_transparent_pixels_on_white():
    image = Image.new("RGBA", (3, 1))
    for column, colour in enumerate([(10, 20, 30, 255), (10, 20, 30, 0), (100, 100, 100, 128)]):
        image.putpixel((column, 0), colour)
    # 127/255 * 255 + 128/255 * 100 = 177.2, truncated.
    assert np.asarray(pixels.whiten(image)).tolist() == [[[10, 20, 30], [255, 255, 255], [177, 177, 177]]]


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK"])
def test_whiten_gives_rgb_of_the_same_size_from_every_mode(mode):
    image = noise(8, 6).convert(mode)
    white = pixels.whiten(image)
    assert white.mode == "RGB" and white.size == (8, 6)
    assert (np.asarray(white) == np.asarray(image.convert("RGB"))).all()


@on_goldens("vq")
def test_whiten_equals_the_originals(goldens):
    folder = goldens / "vq" / "small"
    checked = 0
    for case in json.loads((folder / "cases.json").read_text())["cases"]:
        recorded = np.load(folder / f"{case['name']}.npz")
        if "whitened_u8" in recorded:
            whitened = pixels.whiten(Image.open(folder / f"{case['name']}.png"))
            assert (np.asarray(whitened) == recorded["whitened_u8"]).all()
            checked += 1
    assert checked


def test_pixels_survive_scaling_to_minus_one_to_one_and_back():
    image = noise(16, 16)
    values = pixels.to_pixels(image)
    assert values.dtype == np.float32 and values.shape == (16, 16, 3) and np.abs(values).max() <= 1
    back = np.asarray(pixels.to_image(values)).astype(int)
    # Truncation may lose one level where the float32 lies below the integer.
    assert (np.abs(back - np.asarray(image)) <= 1).all()


def test_to_image_clips_and_truncates():
    values = np.array([[[-3.0, 3.0, 0.0]]], np.float32)
    assert np.asarray(pixels.to_image(values)).tolist() == [[[0, 255, 127]]]

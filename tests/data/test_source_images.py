"""Laws of image files: decoded as a viewer shows them, or refused with a reason that names the file; none ends the run."""

import io

import numpy as np
import pytest
from data_parts import noise
from PIL import Image

from lumina_jax import layout
from lumina_jax.data.sources import open_source
from lumina_jax.data.sources.images import ImageFile, decode_image
from lumina_jax.pictures import pixels
from lumina_jax.sample.files import open_image

SIZES = layout.crop_sizes(512)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(content: bytes) -> Image.Image:
    return decode_image(ImageFile("the file", content))


def learned(image: Image.Image) -> np.ndarray:
    """The crop of an image that the model sees, u8[Y X 3]."""
    size = layout.best_crop(image.size, SIZES)
    return np.asarray(pixels.whiten(pixels.crop(image, size, (0.5, 0.5))))


SMOOTH = noise((16, 12), 0).resize((640, 480), Image.Resampling.BICUBIC)
BAD = {
    "truncated JPEG": (encoded(SMOOTH, "JPEG")[:-2000], "truncated"),
    "truncated PNG": (encoded(SMOOTH, "PNG")[:-2000], "truncated|broken"),
    "truncated GIF": (encoded(SMOOTH, "GIF")[:-2000], "truncated"),
    "empty": (b"", "it is empty"),
    "HTML": (b"<!DOCTYPE html><html>404</html>", "no image that Pillow can read; its first bytes are 3c 21"),
    "floats": (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    "wide integers": (
        encoded(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"),
        "levels go from 70000 to 70000",
    ),
    "bomb": (encoded(Image.new("1", (20000, 10000)), "PNG"), "decompression bomb"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_says_why_and_names_the_file(kind):
    content, reason = BAD[kind]
    with pytest.raises(ValueError, match=f"the file: .*({reason})"):
        decoded(content)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own remarks on damaged TIFF files
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM"])
def test_damaged_files_are_read_or_refused_by_name(kind):
    rng, content = np.random.default_rng(0), encoded(noise((24, 17), 0), kind)
    refused = 0
    for _ in range(120):
        broken = bytearray(content)
        for index in rng.integers(0, len(broken), rng.integers(1, 6)):
            broken[index] = rng.integers(0, 256)
        try:
            decoded(bytes(broken[: rng.integers(8, len(broken) + 1)]))
        except ValueError as error:
            assert str(error).startswith("the file: ") and "0x" not in str(error)
            refused += 1
    assert refused


def test_cmyk_becomes_its_printed_colours():
    colours = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8))
    image = decoded(encoded(colours.convert("CMYK").resize((64, 16), Image.Resampling.NEAREST), "JPEG", quality=100))
    assert image.mode == "RGB"
    rgb = np.asarray(image)[8, 8::16].astype(int)
    assert np.abs(rgb - np.asarray(colours)[0].astype(int)).max() <= 3


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.array([[0, 128, 129, 257, 32896, 65407, 65535]], np.uint16)
    image = decoded(encoded(Image.fromarray(levels), "PNG"))
    assert image.mode == "RGB" and np.asarray(image)[..., 1].tolist() == [[0, 0, 1, 1, 128, 255, 255]]
    assert learned(decoded(encoded(Image.fromarray(np.full((40, 40), 32896, np.uint16)), "TIFF"))).max() == 128


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert np.asarray(pixels.whiten(decoded(content)))[3, 3].tolist() == [255, 0, 0]


def test_transparent_pixels_become_white():
    image = Image.new("RGBA", (64, 64), (10, 20, 30, 0))
    image.paste((200, 100, 0, 255), (0, 0, 64, 32))
    rgb = learned(decoded(encoded(image, "PNG")))
    assert rgb[0, 0].tolist() == [200, 100, 0] and rgb[-1, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (20000, 3), (3, 20000), (2000, 1)])
def test_tiny_and_long_pictures_take_no_more_memory_than_others(size, monkeypatch):
    resized, resize = [], Image.Image.resize

    def watched(self, size, *arguments, **options):
        resized.append(size[0] * size[1])
        return resize(self, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    rgb = learned(decoded(encoded(noise(size, 0), "PNG")))
    assert rgb.shape[:2] in [(high, wide) for wide, high in SIZES]
    assert max(resized) <= pixels.MOST_ENLARGED * 512 * 512


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK"])
def test_cropping_a_long_picture_before_resizing_changes_nothing(mode, monkeypatch):
    image = noise((900, 3), 1).convert("L" if mode == "LA" else "RGB").convert(mode)
    for share in ((0.0, 0.0), (0.37, 0.6), (0.9999, 0.9999)):
        monkeypatch.setattr(pixels, "MOST_ENLARGED", 16)
        cut = np.asarray(pixels.crop(image, (64, 32), share)).astype(int)
        monkeypatch.setattr(pixels, "MOST_ENLARGED", 10**9)
        uncropped = np.asarray(pixels.crop(image, (64, 32), share)).astype(int)
        assert cut.shape == uncropped.shape and np.abs(cut - uncropped).max() <= 1


def test_a_sideways_photo_is_upright_in_training_and_in_prompts(tmp_path):
    photo, exif = Image.new("RGB", (64, 32), "white"), Image.Exif()
    photo.paste("red", (0, 0, 20, 32))
    exif[0x112] = 6
    for name, kind in (("a.jpe", "JPEG"), ("b.tga", "PNG"), ("c.webp", "WEBP"), ("d.heic", "HEIF")):
        (tmp_path / name).write_bytes(encoded(photo, kind, exif=exif.tobytes(), quality=95))
        (tmp_path / name).with_suffix(".txt").write_text("red above white")
    source = open_source(f"folder:{tmp_path}")
    assert len(source) == 4
    for index, name in enumerate(("a.jpe", "b.tga", "c.webp", "d.heic")):
        for image in (*source[index].images, open_image(tmp_path / name)):
            assert image.size == (32, 64)
            top, bottom = (np.asarray(image)[row, 16].astype(int) for row in (4, -4))
            assert top[0] - top[1] > 200 and bottom.min() > 240
        assert source.stored(index).files[0].content == (tmp_path / name).read_bytes()

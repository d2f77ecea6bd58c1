"""Image files -> Pillow images <-> arrays: decode as a viewer does; crop, whiten and scale exactly as the original does.

Sources: var_center_crop and center_crop (item_processor.py), ImageTokenizer (Chameleon's image_tokenizer.py).
"""

import numpy as np
from PIL import Image

from lumina_jax.pictures.formats import opened
from lumina_jax.pictures.viewer import shown

MOST_ENLARGED = 16
"""An image is resized whole and then cropped, unless the resized one has more than this many times the crop's pixels: then only
the cropped region is resized."""


def decode(content: bytes, label: str) -> Image.Image:
    """The bytes of an image file -> what a viewer shows, RGB or, where it is transparent, RGBA (see viewer.shown).

    Raises InputError, its message beginning with ``label`` (such as the file's name), when the file is damaged, no image, of a
    format without a decoder, or larger than Image.MAX_IMAGE_PIXELS allows.
    """
    with opened(content, label) as image:
        return shown(image)


def crop(image: Image.Image, size: tuple[int, int], offset_share: tuple[float, float]) -> Image.Image:
    """Resizes ``image`` until it just covers ``size`` (width, height) and cuts that size out of it.

    ``offset_share`` in [0, 1)² is the position: the share of the free columns and rows that lies left of and above the
    crop; draw it uniformly for a random crop. The image keeps its mode. No temporary image is larger than both the given
    image and MOST_ENLARGED crops.
    """
    image = _halve(image, size)
    covering = _covering_size(image, size)
    free = (covering[0] - size[0] + 1, covering[1] - size[1] + 1)
    left, upper = int(offset_share[0] * free[0]), int(offset_share[1] * free[1])
    box = (left, upper, left + size[0], upper + size[1])
    if covering[0] * covering[1] <= MOST_ENLARGED * size[0] * size[1]:
        return _resize(image, covering).crop(box)
    # The same filter at the same positions, evaluated for the crop alone: equal up to one level of rounding.
    edges = zip(box, covering * 2, image.size * 2, strict=True)
    source = tuple(min(edge / scaled * side, side) for edge, scaled, side in edges)
    return image.resize(size, resample=Image.Resampling.BICUBIC, box=source)


def random_crop(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """:func:`crop` at a uniformly random position; ``rng`` draws the column first."""
    return crop(image, size, (rng.random(), rng.random()))


def cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resizes ``image`` so that it just covers ``size`` (width, height): box-filter halvings, then one bicubic step."""
    image = _halve(image, size)
    return _resize(image, _covering_size(image, size))


def _halve(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    while image.width >= 2 * size[0] and image.height >= 2 * size[1]:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    return image


def _covering_size(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """The (width, height) at which ``image`` just covers ``size``."""
    scale = max(size[0] / image.width, size[1] / image.height)
    return round(image.width * scale), round(image.height * scale)


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, resample=Image.Resampling.BICUBIC)


def whiten(image: Image.Image) -> Image.Image:
    """An image of any mode -> RGB, on a white background where it is transparent."""
    if image.mode == "RGB":
        return image
    rgba = np.asarray(image.convert("RGBA"))
    if (rgba[..., 3] == 255).all():
        return image.convert("RGB")
    alpha = rgba[..., 3:] / 255.0
    return Image.fromarray(((1 - alpha) * 255 + alpha * rgba[..., :3]).astype(np.uint8), "RGB")


def to_pixels(image: Image.Image) -> np.ndarray:
    """An image -> f32[Y X 3] in [-1, 1]."""
    return (np.asarray(whiten(image)) / 255.0 * 2 - 1).astype(np.float32)


def to_image(pixels: np.ndarray) -> Image.Image:
    """f32[Y X 3] -> an RGB image: clipped to [-1, 1], scaled to 0..255 and truncated to integers, as the original does."""
    shares = (np.clip(np.asarray(pixels, np.float32), -1, 1) + 1) / 2
    return Image.fromarray((shares * 255).astype(np.uint8), "RGB")

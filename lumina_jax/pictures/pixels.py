"""Image files -> Pillow images <-> arrays: decode as a viewer does; crop, whiten and scale exactly as the original does.

Sources: var_center_crop and center_crop (item_processor.py), ImageTokenizer (Chameleon's image_tokenizer.py); for Chameleon's own
checkpoints transformers' ChameleonImageProcessor.
"""

import numpy as np
from PIL import Image

from lumina_jax.pictures.formats import opened
from lumina_jax.pictures.viewer import shown

CHAMELEON_SCALE = 0.0078
"""What transformers' Chameleon multiplies bytes by, before it subtracts 1: white is 0.989. In Meta's code it is 2/255, white 1."""
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
    return _cut(image, covering, (left, upper, left + size[0], upper + size[1]), Image.Resampling.BICUBIC)


def centre_square(image: Image.Image, edge: int) -> Image.Image:
    """RGB of ``edge`` x ``edge`` pixels: the middle of ``image``, of any mode, on white, its shorter side resized to ``edge``.

    Equals transformers' ChameleonImageProcessorPil on RGB and RGBA. Meta's code rounds the longer side, which is cut off here, and
    what shows through transparent pixels.
    """
    if "A" in image.getbands():
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image, shorter = image.convert("RGB"), min(image.size)
    whole = tuple(edge * side // shorter for side in image.size)
    left, upper = ((side - edge) // 2 for side in whole)
    return _cut(image, whole, (left, upper, left + edge, upper + edge), Image.Resampling.LANCZOS)


def _cut(
    image: Image.Image, whole: tuple[int, int], box: tuple[int, int, int, int], resample: Image.Resampling
) -> Image.Image:
    """The region ``box`` of ``image`` resized to ``whole`` (width, height)."""
    size = (box[2] - box[0], box[3] - box[1])
    if whole[0] * whole[1] <= MOST_ENLARGED * size[0] * size[1]:
        return image.resize(whole, resample=resample).crop(box)
    # The same filter at the same positions, evaluated for the crop alone: equal up to one level of rounding.
    edges = zip(box, whole * 2, image.size * 2, strict=True)
    source = tuple(min(edge / scaled * side, side) for edge, scaled, side in edges)
    return image.resize(size, resample=resample, box=source)


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


def to_chameleon_pixels(image: Image.Image) -> np.ndarray:
    """An RGB image -> f32[Y X 3] from -1 to 0.989, as transformers' ChameleonImageProcessor scales it."""
    return (np.asarray(image) * CHAMELEON_SCALE).astype(np.float32) - np.float32(1)


def to_image(pixels: np.ndarray) -> Image.Image:
    """f32[Y X 3] -> an RGB image: clipped to [-1, 1], scaled to 0..255 and truncated to integers, as the original does."""
    shares = (np.clip(np.asarray(pixels, np.float32), -1, 1) + 1) / 2
    return Image.fromarray((shares * 255).astype(np.uint8), "RGB")

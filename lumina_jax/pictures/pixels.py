"""Image files -> Pillow images <-> arrays: decode, crop, whiten and scale exactly as the original does.

Sources: var_center_crop and center_crop (item_processor.py), ImageTokenizer (Chameleon's image_tokenizer.py).
"""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from lumina_jax.errors import InputError

MOST_ENLARGED = 16
"""An image is resized whole and then cropped, unless the resized one has more than this many times the crop's pixels: then only
the cropped region is resized."""

DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def decode(content: bytes, label: str) -> Image.Image:
    """The bytes of an image file -> its image (the first frame of an animation), in the file's mode after :func:`eight_bits`.

    Raises InputError, its message beginning with ``label`` (such as the file's name), when the file is damaged, no image, or
    larger than Image.MAX_IMAGE_PIXELS allows.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return eight_bits(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        reason = f"its first bytes are {content[:8].hex(' ')}" if content else "it is empty"
        raise InputError(f"{label}: no image that Pillow can read; {reason}") from error
    except Exception as error:  # on damaged files Pillow's readers raise whatever their parsing runs into
        raise InputError(f"{label}: {error or type(error).__name__}") from error


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


def eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grayscale image -> mode "L", levels scaled from 0..65535 to 0..255 and rounded; any other image unchanged.

    Pillow's own conversion would clip instead and turn all but the darkest levels white. Raises InputError for wider
    integers and for floats, whose range no file format fixes.
    """
    if image.mode == "F":
        raise InputError("its pixels are floating-point numbers, whose range is unknown; store it with 8 or 16 bits")
    if image.mode not in DEEP_MODES:
        return image
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 0xFFFF:
        raise InputError(f"its levels go from {levels.min()} to {levels.max()}; store it with 8 or 16 bits, 0 to 65535")
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))


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

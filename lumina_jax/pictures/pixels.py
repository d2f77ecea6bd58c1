"""Image files -> pictures <-> arrays: decode, crop, whiten, scale, exactly as the original prepares and writes images.

Sources: var_center_crop and center_crop (item_processor.py), ImageTokenizer (Chameleon's image_tokenizer.py).
"""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from lumina_jax.errors import InputError

MOST_ENLARGED = 16
"""A picture so long and thin that covering its crop takes more than this many times the crop's area is cut first."""

DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def decode(content: bytes, said: str) -> Image.Image:
    """The content of an image file -> its picture, of a moving one the first, in the file's own mode but :func:`eight_bits`.

    ValueError, beginning with what is ``said`` of the file (its name), when it is damaged, no image, or too large to decode
    with safety (Image.MAX_IMAGE_PIXELS).
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return eight_bits(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        what = f"its first bytes are {content[:8].hex(' ')}" if content else "it is empty"
        raise InputError(f"{said}: no image that Pillow can read; {what}") from error
    except Exception as error:  # on damaged files Pillow's readers raise whatever their parsing runs into
        raise InputError(f"{said}: {error or type(error).__name__}") from error


def crop(image: Image.Image, size: tuple[int, int], offset_share: tuple[float, float]) -> Image.Image:
    """Shrinks ``image`` until it just covers ``size`` (width, height) and cuts that size out of it.

    ``offset_share`` in [0, 1)² says where: the share of the free columns and rows that lies left of and above the crop;
    draw it uniformly for a random crop. The image keeps its mode. Whatever its shape, no picture larger than itself or
    MOST_ENLARGED crops is made.
    """
    image = _halve(image, size)
    whole = _covering(image, size)
    free = (whole[0] - size[0] + 1, whole[1] - size[1] + 1)
    left, upper = int(offset_share[0] * free[0]), int(offset_share[1] * free[1])
    box = (left, upper, left + size[0], upper + size[1])
    if whole[0] * whole[1] <= MOST_ENLARGED * size[0] * size[1]:
        return _resize(image, whole).crop(box)
    # The same filter at the same places, evaluated for the crop alone: equal up to one level of rounding.
    source = tuple(min(edge / full * own, own) for edge, full, own in zip(box, whole * 2, image.size * 2, strict=True))
    return image.resize(size, resample=Image.Resampling.BICUBIC, box=source)


def random_crop(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """:func:`crop` at a place drawn uniformly from ``rng``, columns first."""
    return crop(image, size, (rng.random(), rng.random()))


def cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resizes ``image`` so that it just covers ``size`` (width, height): box halvings, then one bicubic step."""
    image = _halve(image, size)
    return _resize(image, _covering(image, size))


def _halve(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    while image.width >= 2 * size[0] and image.height >= 2 * size[1]:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    return image


def _covering(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """The (width, height) at which ``image`` just covers ``size``."""
    scale = max(size[0] / image.width, size[1] / image.height)
    return round(image.width * scale), round(image.height * scale)


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, resample=Image.Resampling.BICUBIC)


def eight_bits(image: Image.Image) -> Image.Image:
    """A picture of 16 bits per pixel -> "L", its levels 0..65535 scaled to 0..255 and rounded; any other as it is.

    Pillow would clip it: all but the darkest levels turn white. Raises ValueError for wider integers and for floats,
    whose range no file format fixes.
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
    """Any mode -> RGB; what is transparent turns white."""
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
    """f32[Y X 3] -> an RGB image: clipped to [-1, 1], scaled to 0..255 and truncated, as the original does."""
    shares = (np.clip(np.asarray(pixels, np.float32), -1, 1) + 1) / 2
    return Image.fromarray((shares * 255).astype(np.uint8), "RGB")

"""Pictures <-> arrays: crop, whiten, scale, exactly as the original prepares and writes images.

Sources: var_center_crop and center_crop (item_processor.py), ImageTokenizer (Chameleon's image_tokenizer.py).
"""

import numpy as np
from PIL import Image


def crop(image: Image.Image, size: tuple[int, int], offset_share: tuple[float, float]) -> Image.Image:
    """Shrinks ``image`` until it just covers ``size`` (width, height) and cuts that size out of it.

    ``offset_share`` in [0, 1)² says where: the share of the free columns and rows that lies left of and above the crop;
    draw it uniformly for a random crop. The image keeps its mode.
    """
    shrunk = cover(image, size)
    free = (shrunk.width - size[0] + 1, shrunk.height - size[1] + 1)
    left, upper = int(offset_share[0] * free[0]), int(offset_share[1] * free[1])
    return shrunk.crop((left, upper, left + size[0], upper + size[1]))


def random_crop(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """:func:`crop` at a place drawn uniformly from ``rng``, columns first."""
    return crop(image, size, (rng.random(), rng.random()))


def cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resizes ``image`` so that it just covers ``size`` (width, height): box halvings, then one bicubic step."""
    while image.width >= 2 * size[0] and image.height >= 2 * size[1]:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = max(size[0] / image.width, size[1] / image.height)
    return image.resize((round(image.width * scale), round(image.height * scale)), resample=Image.Resampling.BICUBIC)


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

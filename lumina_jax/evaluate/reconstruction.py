"""What the image tokenizer keeps of a picture: PSNR of decode(encode(picture))."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from lumina_jax.errors import InputError
from lumina_jax.layout import CODES_PER_UNIT
from lumina_jax.pictures.pixels import crop, to_image, to_pixels, whiten
from lumina_jax.sample.prompt import open_image


class ImageTokenizer(Protocol):
    """VQVAE or PatchVQ."""

    @property
    def stride(self) -> int: ...

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """f32[B Y X 3] in [-1, 1] -> i32[B R C]."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """i32[B R C] -> f32[B Y X 3]."""


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two u8 pictures; 100 when they are equal."""
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return 100.0 if error == 0 else float(10 * np.log10(255**2 / error))


def reconstruct(picture: Image.Image, vq: ImageTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """A picture cut to whole size units in its middle, and what comes back of it: two u8[Y X 3]."""
    unit = vq.stride * CODES_PER_UNIT
    size = (picture.width // unit * unit, picture.height // unit * unit)
    if 0 in size:
        raise InputError(f"a picture of {picture.width}x{picture.height} px is smaller than one size unit of {unit} px")
    cut = whiten(crop(picture, size, (0.5, 0.5)))
    codes = vq.encode(to_pixels(cut)[None])
    return np.asarray(cut), np.asarray(to_image(np.asarray(vq.decode(codes))[0]))


def reconstruction(vq: ImageTokenizer, files: Sequence[str | Path]) -> dict[str, float]:
    """PSNR in dB by file name, and their mean."""
    by_file = {str(file): psnr(*reconstruct(open_image(Path(file)), vq)) for file in files}
    return by_file | {"mean": float(np.mean(list(by_file.values())))}

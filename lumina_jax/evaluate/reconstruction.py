"""What the image tokenizer keeps of a picture: PSNR of decode(encode(picture))."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lumina_jax.errors import InputError
from lumina_jax.layout import CODES_PER_UNIT
from lumina_jax.model.image_tokenizer import ImageTokenizer, decode_image, encode_image
from lumina_jax.pictures.metrics import psnr
from lumina_jax.pictures.pixels import crop, whiten
from lumina_jax.sample.files import open_image


def reconstruct(picture: Image.Image, vq: ImageTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The centre of a picture, cropped to a multiple of the size unit, and decode(encode(it)): two u8[Y X 3].

    Raises InputError for a picture smaller than one size unit.
    """
    unit = vq.stride * CODES_PER_UNIT
    size = (picture.width // unit * unit, picture.height // unit * unit)
    if 0 in size:
        raise InputError(
            f"a picture of {picture.width}x{picture.height} px is smaller than one size unit of {unit} px; give a larger one"
        )
    cropped = whiten(crop(picture, size, (0.5, 0.5)))
    return np.asarray(cropped), np.asarray(decode_image(vq, encode_image(vq, cropped)))


def reconstruction(vq: ImageTokenizer, files: Sequence[str | Path]) -> dict[str, float]:
    """PSNR in dB by file name, and their mean under "mean". Raises InputError naming a file that is no picture or too small."""
    by_file = {str(file): psnr(*reconstruct(open_image(Path(file)), vq)) for file in files}
    return by_file | {"mean": float(np.mean(list(by_file.values())))}

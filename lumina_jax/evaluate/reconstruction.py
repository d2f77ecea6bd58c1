"""What the image tokenizer keeps of a picture: PSNR, SSIM and LPIPS of decode(encode(picture)) (paper Figure 9)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from lumina_jax.errors import InputError
from lumina_jax.evaluate.variety import Distance
from lumina_jax.layout import CODES_PER_UNIT
from lumina_jax.model.image_tokenizer import ImageTokenizer, decode_image, encode_image
from lumina_jax.pictures.formats import SUFFIXES
from lumina_jax.pictures.metrics import psnr, ssim
from lumina_jax.pictures.picture_table import PictureCell, PictureTable
from lumina_jax.pictures.pixels import crop, whiten
from lumina_jax.places import Place, place
from lumina_jax.sample.files import open_image

SHEET_PICTURES = 32
"""The most pictures on a sheet, the first ones."""


class Reconstruction(NamedTuple):
    """A picture u8[Y X 3], decode(encode(it)), and their ``numbers``: psnr_db, ssim, and lpips where its weights are given."""

    file: str
    original: np.ndarray
    decoded: np.ndarray
    numbers: dict[str, float]


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


def picture_files(paths: Sequence[str]) -> list[str]:
    """The files among ``paths``, and the pictures in the folders among them, by name; a folder's folders are not searched.

    Raises InputError for a file that is no picture, and for a folder without one.
    """
    files: list[str] = []
    for path in paths:
        where = place(path)
        if not where.is_dir():
            open_image(where)
            files.append(path)
            continue
        inside = sorted(str(file) for file in where.iterdir() if file.suffix.lower() in SUFFIXES)
        if not inside:
            raise InputError(f"{path} holds no picture ({', '.join(SUFFIXES[:4])} ...); give a folder of pictures")
        files += inside
    return files


def reconstructions(
    vq: ImageTokenizer, files: Sequence[str | Place], lpips: Distance | None = None
) -> Iterator[Reconstruction]:
    """Measures one file after the other. Raises InputError naming a file that is no picture or too small."""
    for file in files:
        original, decoded = reconstruct(open_image(place(file)), vq)
        numbers = {"psnr_db": psnr(original, decoded), "ssim": ssim(original, decoded)}
        yield Reconstruction(
            str(file), original, decoded, numbers | ({"lpips": lpips(original, decoded)} if lpips else {})
        )


def reconstruction_table(numbers: dict[str, dict[str, float]]) -> dict[str, dict]:
    """File -> its numbers, and their means: what ``run.py evaluate --pictures`` prints."""
    first = next(iter(numbers.values()))
    mean = {name: float(np.mean([row[name] for row in numbers.values()])) for name in first}
    return {"pictures": numbers, "mean": mean}


def comparison(results: Sequence[Reconstruction]) -> PictureTable:
    """Each original beside its reconstruction, with its numbers."""
    rows = []
    for result in results:
        cells = PictureCell(Image.fromarray(result.original)), PictureCell(Image.fromarray(result.decoded))
        rows.append((f"{place(result.file).name}: {numbers_in_words(result.numbers)}", cells))
    return PictureTable("Image tokenizer", ("original", "encoded and decoded"), tuple(rows))


def numbers_in_words(numbers: dict[str, float]) -> str:
    """PSNR, SSIM and LPIPS in words."""
    words = f"PSNR {numbers['psnr_db']:.1f} dB, SSIM {numbers['ssim']:.3f}"
    return words + (f", LPIPS {numbers['lpips']:.3f}" if "lpips" in numbers else "")

"""Image files to arrays and arrays to image files, for the painted pictures of the task sets."""

import io

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lumina_jax.data.sources.images import ImageFile, decode_image, read_image
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.pictures.formats import opened
from lumina_jax.pictures.pixels import whiten
from lumina_jax.pictures.viewer import LABELS, shown_size

PNG_EFFORT = 1
"""zlib's compression level. A painted picture is decoded once, so time matters more than size."""


def painted(name: str, picture: np.ndarray | Image.Image) -> ImageFile:
    """A picture u8[Y X 3], or an image of any mode of PNG, as a PNG file called ``name``.

    A palette image is marked by viewer.LABELS: its colours stand for classes and are never mixed.
    """
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    content, marks = io.BytesIO(), PngInfo()
    if image.mode == "P":
        marks.add_text(*LABELS)
    image.save(content, "PNG", compress_level=PNG_EFFORT, pnginfo=marks)
    return ImageFile(name, content.getvalue())


def colours(file: ImageFile) -> np.ndarray:
    """A photo as a viewer shows it, u8[Y X 3]; InputError naming the file when it is damaged."""
    return np.asarray(whiten(decode_image(file)))


def vectors(file: ImageFile) -> np.ndarray:
    """The raw values u8[Y X 3] of a map with three channels, not colour managed; InputError when it is damaged."""
    with opened(file.content, file.name) as image:
        return np.asarray(image.convert("RGB"))


def levels(file: ImageFile, kind: str) -> np.ndarray:
    """The raw values i64[Y X] of a map with one channel, 8 or 16 bits or palette indices, not colour managed.

    Raises InputError, which says that a ``kind`` was expected, when it is damaged or has several channels.
    """
    with opened(file.content, f"{file.name}: no {kind} that can be read") as image:
        values = np.asarray(image)
    if values.ndim != 2 or values.dtype.kind not in "ui":
        raise InputError(
            f"{file.name}: a {kind} has one channel of whole numbers, this has {values.dtype}{values.shape[2:]}",
            cause="a map with several channels or floats",
        )
    return values.astype(np.int64)


def size_of(file: ImageFile) -> tuple[int, int]:
    """(width, height) of an image file as a viewer shows it, from its header; InputError naming the file when it has none."""
    with opened(file.content, file.name) as image:
        return shown_size(image)


def read_first(*paths: str) -> ImageFile:
    """The first image file that exists; MissingFileError naming all ``paths`` when none does."""
    for path in paths:
        try:
            return read_image(path)
        except FileNotFoundError:
            continue
    raise MissingFileError(f"{' or '.join(paths)}: no such file")

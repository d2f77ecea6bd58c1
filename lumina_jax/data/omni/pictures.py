"""Image files to arrays and arrays to image files, for the painted pictures of the task sets."""

import io

import numpy as np
from PIL import Image

from lumina_jax.data.sources.images import ImageFile, decode_image, read_image
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.pictures.pixels import whiten

PNG_EFFORT = 1
"""zlib's compression level. A painted picture is decoded once, so time matters more than size."""


def painted(name: str, picture: np.ndarray | Image.Image) -> ImageFile:
    """A picture u8[Y X 3], or an image of any mode of PNG, as a PNG file called ``name``."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=PNG_EFFORT)
    return ImageFile(name, content.getvalue())


def colours(file: ImageFile) -> np.ndarray:
    """The decoded picture u8[Y X 3]; InputError naming the file when it is damaged."""
    return np.asarray(whiten(decode_image(file)))


def levels(file: ImageFile, kind: str) -> np.ndarray:
    """The raw values i64[Y X] of an image with one channel, 8 or 16 bits or palette indices.

    Raises InputError, which says that a ``kind`` was expected, when it is damaged or has several channels.
    """
    try:
        with Image.open(io.BytesIO(file.content)) as image:
            values = np.asarray(image)
    except Exception as error:  # on damaged files Pillow raises exceptions of many classes
        raise InputError(f"{file.name}: no {kind} that can be read: {error or type(error).__name__}") from error
    if values.ndim != 2 or values.dtype.kind not in "ui":
        raise InputError(
            f"{file.name}: a {kind} has one channel of whole numbers, this has {values.dtype}{values.shape[2:]}"
        )
    return values.astype(np.int64)


def size_of(file: ImageFile) -> tuple[int, int]:
    """(width, height) from the header of an image file; InputError naming the file when it has none."""
    try:
        with Image.open(io.BytesIO(file.content)) as image:
            return image.size
    except Exception as error:
        raise InputError(f"{file.name}: no image that Pillow can read") from error


def read_first(*paths: str) -> ImageFile:
    """The first image file that exists; MissingFileError naming all ``paths`` when none does."""
    for path in paths:
        try:
            return read_image(path)
        except FileNotFoundError:
            continue
    raise MissingFileError(f"{' or '.join(paths)}: no such file")

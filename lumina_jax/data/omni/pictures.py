"""Between stored pictures and arrays: levels as they are in a file, and painted pictures as files."""

import io

import numpy as np
from PIL import Image

from lumina_jax.data.sources.images import ImageFile, decode_image, read_image
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.pictures.pixels import whiten

PNG_EFFORT = 1
"""zlib's level: a painted picture is read once, so time counts more than bytes."""


def painted(name: str, picture: np.ndarray | Image.Image) -> ImageFile:
    """A picture u8[Y X 3], or one of any mode that PNG holds, as a PNG file called ``name``."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=PNG_EFFORT)
    return ImageFile(name, content.getvalue())


def colours(file: ImageFile) -> np.ndarray:
    """A stored picture as u8[Y X 3]; ValueError naming the file when it is damaged."""
    return np.asarray(whiten(decode_image(file)))


def levels(file: ImageFile, kind: str) -> np.ndarray:
    """The levels of a stored picture with one channel, i64[Y X] as they are: indices of a palette too, and all 16 bits.

    Raises ValueError saying that a ``kind`` was expected when it is damaged or has several channels.
    """
    try:
        with Image.open(io.BytesIO(file.content)) as image:
            held = np.asarray(image)
    except Exception as error:  # on damaged files Pillow's readers raise whatever their parsing runs into
        raise InputError(f"{file.name}: no {kind} that can be read: {error or type(error).__name__}") from error
    if held.ndim != 2 or held.dtype.kind not in "ui":
        raise InputError(
            f"{file.name}: a {kind} has one channel of whole numbers, this has {held.dtype}{held.shape[2:]}"
        )
    return held.astype(np.int64)


def size_of(file: ImageFile) -> tuple[int, int]:
    """(width, height) of a stored picture, by its header; ValueError naming the file when it has none."""
    try:
        with Image.open(io.BytesIO(file.content)) as image:
            return image.size
    except Exception as error:
        raise InputError(f"{file.name}: no image that Pillow can read") from error


def read_first(*places: str) -> ImageFile:
    """The first of the files that is there; FileNotFoundError naming them all when none is, OSError when one is not readable."""
    for place in places:
        try:
            return read_image(place)
        except OSError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    raise MissingFileError(f"{' or '.join(places)}: no such file")

"""The content of an image file -> a picture, whole, or the reason why it is none."""

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lumina_jax.data.sources import files
from lumina_jax.pixels import eight_bits

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm", ".pgm", ".avif")


@dataclass(frozen=True)
class ImageFile:
    """An image as it is stored, and a name to speak of it."""

    name: str
    content: bytes


def read_image(place: str) -> ImageFile:
    """An image file, not decoded yet; OSError naming it when it cannot be read."""
    try:
        return ImageFile(place, files.read(place))
    except OSError as error:
        # Not the error's own text, which names the file again.
        raise OSError(f"{place}: {error.strerror}" if error.strerror else str(error)) from error


def open_image(place: str | Path) -> Image.Image:
    """Reads an image whole, so that a damaged one fails here: OSError or ValueError naming the file."""
    return decode_image(read_image(str(place)))


def decode_image(file: ImageFile) -> Image.Image:
    """An image file -> its picture, of a moving one the first, in the file's own mode but with at most 8 bits per channel.

    ValueError naming the file when it is damaged, no image, or too large to decode with safety (Image.MAX_IMAGE_PIXELS).
    """
    try:
        with Image.open(io.BytesIO(file.content)) as image:
            image.load()
            return eight_bits(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        what = f"its first bytes are {file.content[:8].hex(' ')}" if file.content else "it is empty"
        raise ValueError(f"{file.name}: no image that Pillow can read; {what}") from error
    except Exception as error:  # on damaged files Pillow's readers raise whatever their parsing runs into
        raise ValueError(f"{file.name}: {error or type(error).__name__}") from error

"""The content of an image file -> a picture, whole, or the reason why it is none."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lumina_jax.data.sources import files
from lumina_jax.errors import StorageError
from lumina_jax.pictures.pixels import decode

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
        raise StorageError(f"{place}: {error.strerror}" if error.strerror else str(error)) from error


def open_image(place: str | Path) -> Image.Image:
    """Reads an image whole, so that a damaged one fails here: OSError or ValueError naming the file."""
    return decode_image(read_image(str(place)))


def decode_image(file: ImageFile) -> Image.Image:
    """An image file -> its picture (pixels.decode); ValueError naming the file when it is damaged or none."""
    return decode(file.content, file.name)

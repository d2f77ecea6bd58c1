"""Image files and the pictures decoded from them."""

from dataclasses import dataclass

from PIL import Image

from lumina_jax.data.sources import files
from lumina_jax.data.sources.urls import shown
from lumina_jax.pictures.pixels import decode

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm", ".pgm", ".avif")


@dataclass(frozen=True)
class ImageFile:
    """The bytes of an image file, and the name that errors call it by."""

    name: str
    content: bytes


def read_image(path: str) -> ImageFile:
    """An image file, not decoded. Errors: see files."""
    return ImageFile(shown(path), files.read_picture(path))


def decode_image(file: ImageFile) -> Image.Image:
    """An image file -> its picture (pixels.decode); InputError naming the file when it is damaged or no image."""
    return decode(file.content, file.name)

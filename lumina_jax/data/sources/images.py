"""Image files and the pictures decoded from them."""

from dataclasses import dataclass

from PIL import Image

from lumina_jax.data.sources import files
from lumina_jax.data.sources.urls import shown
from lumina_jax.pictures.formats import SUFFIXES, UNREADABLE
from lumina_jax.pictures.pixels import decode

__all__ = ["PICTURE_SUFFIXES", "SUFFIXES", "ImageFile", "decode_image", "read_image"]

PICTURE_SUFFIXES = (*SUFFIXES, *UNREADABLE)
"""The endings of all picture files, also of those that have no decoder: decode_image says so, hence none is passed over."""


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

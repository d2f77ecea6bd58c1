"""The pictures that a caller shows to the model: of Pillow, or files."""

from collections.abc import Sequence
from os import PathLike, fspath
from typing import TypeAlias

from PIL import Image

from lumina_jax.pictures.viewer import as_shown
from lumina_jax.places import place
from lumina_jax.sample.files import open_image

Picture: TypeAlias = Image.Image | str | PathLike[str]
"""A picture, or the path or URL of its file."""


def opened(images: Picture | Sequence[Picture]) -> list[Image.Image]:
    """``images``, one or several, seen as ``run.py sample --image`` sees their files. Raises InputError naming a file."""
    shown = [images] if isinstance(images, Image.Image | str | PathLike) else images
    return [as_shown(image) if isinstance(image, Image.Image) else open_image(place(fspath(image))) for image in shown]

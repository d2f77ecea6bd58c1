"""Semantic segmentation by OneFormer: a folder of maps of class numbers and a folder of the images.

Class k has colour k + 1 of dense_maps.palette; pixels without a class are black.
"""

import posixpath

import numpy as np
from PIL import Image

from lumina_jax.data.omni.pictures import levels, painted, read_first
from lumina_jax.data.omni.views import PathViews, View
from lumina_jax.data.sources import files
from lumina_jax.data.sources.images import SUFFIXES, ImageFile, read_image
from lumina_jax.data.sources.names import is_picture, is_visible
from lumina_jax.errors import InputError
from lumina_jax.pictures import dense_maps

CLASSES = {"ade20k": 150, "coco": 133, "cityscapes": 19}
"""The number of classes of OneFormer's published checkpoints, by the data set they were trained on."""
NO_CLASS = 255


class SegmentViews(PathViews):
    """A view for each image below ``images``; its map is the .png file of the same path below ``maps``.

    Maps hold OneFormer's class numbers for the data set ``labels`` of CLASSES, u8 in one channel, NO_CLASS for none.
    """

    task = "segmentation"

    def __init__(self, maps: str, images: str, labels: str):
        if labels not in CLASSES:
            raise InputError(f"labels={labels}; choose {', '.join(CLASSES)}")
        self._maps, self._images, self._classes = maps, images, CLASSES[labels]
        listed = [(path, size) for path, size in files.listing(images) if is_picture(path) and is_visible(path)]
        if not listed:
            raise InputError(f"{images} holds no image ({', '.join(SUFFIXES[:4])}, ...)")
        super().__init__([path for path, _ in listed])
        self.fingerprint = files.listing_digest([*listed, *files.listing(maps), (labels, self._classes)])

    def view(self, index: int) -> View:
        path = self._entries[index]
        map_file = read_first(files.join(self._maps, f"{posixpath.splitext(path)[0]}.png"))
        numbers = levels(map_file, "map of class numbers")
        return View(path, read_image(files.join(self._images, path)), paint(map_file.name, numbers, self._classes))


def paint(name: str, numbers: np.ndarray, classes: int) -> ImageFile:
    """Class numbers i[Y X] below ``classes``, or NO_CLASS, as a palette picture; InputError for any other number.

    Resizing it keeps its colours (see painted); that of an RGB picture would mix two neighbours into a third class's colour.
    """
    wrong = (numbers != NO_CLASS) & ((numbers < 0) | (numbers >= classes))
    if wrong.any():
        raise InputError(
            f"{name} holds class {int(numbers[wrong][0])}, but there are 0 to {classes - 1}, and {NO_CLASS}: none"
        )
    image = Image.fromarray(np.where(numbers == NO_CLASS, 0, numbers + 1).astype(np.uint8), "P")
    image.putpalette(dense_maps.palette(classes + 1).tobytes())
    return painted(name, image)


def read(picture: np.ndarray, classes: int) -> np.ndarray:
    """The inverse, u8[Y X 3] -> i32[Y X]: the class of the nearest colour, NO_CLASS where that is black."""
    numbers = dense_maps.decode_classes(picture, dense_maps.palette(classes + 1)) - 1
    return np.where(numbers < 0, NO_CLASS, numbers)

"""Semantic maps as OneFormer finds them: a folder of class numbers beside a folder of any images.

Class k has colour k + 1 of dense_maps.palette; what has no class is black.
"""

import posixpath

import numpy as np
from PIL import Image

from lumina_jax.data.omni.pictures import levels, painted, read_first
from lumina_jax.data.omni.views import View, listing_digest
from lumina_jax.data.sources import files
from lumina_jax.data.sources.images import SUFFIXES, ImageFile, read_image
from lumina_jax.errors import InputError
from lumina_jax.pictures import dense_maps

CLASSES = {"ade20k": 150, "coco": 133, "cityscapes": 19}
"""How many classes OneFormer's published checkpoints tell apart, by the set they were trained on."""
NO_CLASS = 255


class SegmentViews:
    """A view for each image below ``images`` whose map lies at the same path below ``maps_at``, as .png.

    Maps are OneFormer's class numbers for the set ``labels`` of CLASSES, 8 bits in one channel, NO_CLASS where there is none.
    """

    task = "segmentation"

    def __init__(self, maps_at: str, images: str, labels: str):
        if labels not in CLASSES:
            raise InputError(f"labels={labels}; choose {', '.join(CLASSES)}")
        self._maps, self._images, self._classes = maps_at, images, CLASSES[labels]
        listed = [(path, size) for path, size in files.listing(images) if path.lower().endswith(SUFFIXES)]
        if not listed:
            raise InputError(f"{images} holds no image ({', '.join(SUFFIXES[:4])}, ...)")
        self._paths = [path for path, _ in listed]
        self.fingerprint = listing_digest([*listed, *files.listing(maps_at), (labels, self._classes)])

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._paths[index]

    def view(self, index: int) -> View:
        path = self._paths[index]
        found = read_first(files.join(self._maps, f"{posixpath.splitext(path)[0]}.png"))
        classes = levels(found, "map of class numbers")
        return View(path, read_image(files.join(self._images, path)), paint(found.name, classes, self._classes))


def paint(name: str, found: np.ndarray, classes: int) -> ImageFile:
    """Class numbers i[Y X] below ``classes``, or NO_CLASS, as a picture with a palette; ValueError for any other number.

    Such a picture keeps its colours when it is resized; one of RGB would mix neighbours into colours of third classes.
    """
    wrong = (found != NO_CLASS) & ((found < 0) | (found >= classes))
    if wrong.any():
        raise InputError(
            f"{name} holds class {int(found[wrong][0])}, but there are 0 to {classes - 1}, and {NO_CLASS}: none"
        )
    image = Image.fromarray(np.where(found == NO_CLASS, 0, found + 1).astype(np.uint8), "P")
    image.putpalette(dense_maps.palette(classes + 1).tobytes())
    return painted(name, image)


def read(picture: np.ndarray, classes: int) -> np.ndarray:
    """The inverse, u8[Y X 3] -> i32[Y X]: the class with the nearest colour, NO_CLASS where that is black."""
    found = dense_maps.decode_classes(picture, dense_maps.palette(classes + 1)) - 1
    return np.where(found < 0, NO_CLASS, found)

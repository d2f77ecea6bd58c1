"""COCO's person keypoints drawn as skeletons: a hue for each joint, bones in the darkened hue of their second joint."""

from collections.abc import Mapping, Sequence

import numpy as np

from lumina_jax.data.omni.coco_file import CocoFile
from lumina_jax.data.omni.pictures import painted, size_of
from lumina_jax.data.omni.views import View, Views
from lumina_jax.data.sources import files
from lumina_jax.data.sources.images import read_image
from lumina_jax.errors import InputError
from lumina_jax.pictures import annotations

JOINTS = (
    *("nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder"),
    *("left elbow", "right elbow", "left wrist", "right wrist", "left hip", "right hip"),
    *("left knee", "right knee", "left ankle", "right ankle"),
)
"""In COCO's order; joint j has colour j of annotations.joint_colours(17)."""

BONES = (
    *((0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
    *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
)
"""COCO's skeleton, each bone directed away from the head and outwards. The bone between the eyes is left out: it hides them."""

DOT_SHARE, LINE_SHARE = 0.02, 0.008
"""Radius of a dot and half the thickness of a bone, as shares of the longer side of the person's box."""
MIN_DOT, MIN_LINE = 2.5, 1.0
"""In px. Image tokenizers lose anything smaller."""


class PoseViews(Views):
    """A view for each image of COCO's ``split`` ("train2017", "val2017") with at least one labelled joint.

    ``folder`` holds annotations/person_keypoints_SPLIT.json and the images in SPLIT/.
    """

    task = "pose"

    def __init__(self, folder: str, split: str):
        self._folder = files.join(folder, split)
        path = files.join(folder, f"annotations/person_keypoints_{split}.json")
        super().__init__(CocoFile(path, lambda person: person.get("num_keypoints") != 0), f"{path}, image")
        self.fingerprint = self._entries.fingerprint

    def view(self, index: int) -> View:
        image, people = self._entries.entry(index)
        path = str(image.get("file_name"))
        photo = read_image(files.join(self._folder, path))
        skeletons = [joints(person) for person in people]
        sides = [max(box(person)[2:]) for person in people]
        dots, lines = (
            [max(minimum, share * side) for side in sides]
            for minimum, share in ((MIN_DOT, DOT_SHARE), (MIN_LINE, LINE_SHARE))
        )
        picture = annotations.draw_skeletons(size_of(photo), skeletons, BONES, dots, lines)
        return View(path, photo, painted(f"skeletons of {photo.name}", picture))


def joints(person: Mapping) -> np.ndarray:
    """The joints of an annotation as points (x, y) in px, f64[17 2], NaN where not labelled; InputError when malformed."""
    keypoints = person.get("keypoints")
    if not _numbers(keypoints, 3 * len(JOINTS)):
        raise InputError(
            f"annotation {person.get('id')}: 'keypoints' are not {3 * len(JOINTS)} numbers, x, y and v of {len(JOINTS)} joints"
        )
    points = np.array(keypoints, np.float64).reshape(-1, 3)
    # COCO gives pixel indices; the points of pictures.annotations are pixel centres.
    return np.where(points[:, 2:] > 0, points[:, :2] + 0.5, np.nan)


def box(annotation: Mapping) -> Sequence[float]:
    """x, y, width and height of an annotation in px; InputError when malformed."""
    bbox = annotation.get("bbox")
    if not _numbers(bbox, 4) or min(bbox[2:]) <= 0:
        raise InputError(
            f"annotation {annotation.get('id')}: 'bbox' is {bbox!r}, not x, y and a positive width and height"
        )
    return bbox


def _numbers(value: object, count: int) -> bool:
    """Whether ``value`` is a list of ``count`` numbers."""
    right_length = isinstance(value, list) and len(value) == count
    return right_length and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)

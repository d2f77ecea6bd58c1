"""COCO's person keypoints as pictures of skeletons: a hue for each joint, bones darker in the hue of their second joint."""

from collections.abc import Mapping, Sequence

import numpy as np

from lumina_jax.data.omni.coco_file import CocoFile
from lumina_jax.data.omni.pictures import painted, size_of
from lumina_jax.data.omni.views import View
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
"""COCO's skeleton, each bone away from the head and outwards; but for the one between the eyes, which would hide them."""

DOT_SHARE, LINE_SHARE = 0.02, 0.008
"""Radius of a dot and half the thickness of a bone, as shares of the longer side of the person's box."""
LEAST_DOT, LEAST_LINE = 2.5, 1.0
"""Px; what is smaller than this no image tokenizer keeps."""


class PoseViews:
    """A view for each image of COCO's ``split`` ("train2017", "val2017") with at least one labelled joint.

    ``folder`` holds annotations/person_keypoints_SPLIT.json and the images in SPLIT/.
    """

    task = "pose"

    def __init__(self, folder: str, split: str):
        self._folder = files.join(folder, split)
        place = files.join(folder, f"annotations/person_keypoints_{split}.json")
        self._coco = CocoFile(place, lambda person: person.get("num_keypoints") != 0)
        self.fingerprint = self._coco.fingerprint

    def __len__(self) -> int:
        return len(self._coco)

    def name(self, index: int) -> str:
        return f"{self._coco.place}, image {index}"

    def view(self, index: int) -> View:
        image, people = self._coco.entry(index)
        path = str(image.get("file_name"))
        photo = read_image(files.join(self._folder, path))
        found = [joints(person) for person in people]
        longer = [max(box(person)[2:]) for person in people]
        dots, lines = (
            [max(least, share * side) for side in longer]
            for least, share in ((LEAST_DOT, DOT_SHARE), (LEAST_LINE, LINE_SHARE))
        )
        picture = annotations.draw_skeletons(size_of(photo), found, BONES, dots, lines)
        return View(path, photo, painted(f"skeletons of {photo.name}", picture))


def joints(person: Mapping) -> np.ndarray:
    """The joints of an annotation as points f64[17 2], NaN for what is not labelled; ValueError naming a malformed one."""
    held = person.get("keypoints")
    if not _numbers(held, 3 * len(JOINTS)):
        raise InputError(
            f"annotation {person.get('id')}: 'keypoints' are not {3 * len(JOINTS)} numbers, x, y and v of {len(JOINTS)} joints"
        )
    points = np.array(held, np.float64).reshape(-1, 3)
    # COCO counts pixels from 0; a point of marks is in the middle of its pixel.
    return np.where(points[:, 2:] > 0, points[:, :2] + 0.5, np.nan)


def box(annotation: Mapping) -> Sequence[float]:
    """x, y, width and height of an annotation; ValueError naming a malformed one."""
    held = annotation.get("bbox")
    if not _numbers(held, 4) or min(held[2:]) <= 0:
        raise InputError(
            f"annotation {annotation.get('id')}: 'bbox' is {held!r}, not x, y and a positive width and height"
        )
    return held


def _numbers(held: object, count: int) -> bool:
    right = isinstance(held, list) and len(held) == count
    return right and all(isinstance(number, int | float) and not isinstance(number, bool) for number in held)

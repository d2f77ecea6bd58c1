"""Surface normals of NYUv2 and ScanNet, as dense_maps.encode_normals paints them: right, up, towards the viewer.

Published maps also hold unit vectors as levels 0 to 255, but on other axes. Flipping an axis is 255 - level, without loss.
"""

import re

import numpy as np

from lumina_jax.data.omni.pictures import painted, read_first, vectors
from lumina_jax.data.omni.views import FolderLayout, FolderViews, View
from lumina_jax.data.sources import files
from lumina_jax.data.sources.images import ImageFile, read_image
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.pictures import dense_maps

Axes = tuple[bool, bool, bool]
"""Which of the three axes of a published map have to be flipped."""

LEFT_UP_VIEWER: Axes = (True, False, False)
"""Ladicky's maps of NYUv2, and those of surface_normal_uncertainty and DSINE (right, down, forward, pointing outwards)."""
RIGHT_DOWN_FORWARD: Axes = (False, True, True)
"""FrameNet's maps of ScanNet."""

MAX_LENGTH = 1.5
"""A vector longer than this, or shorter than dense_maps.LEAST_LENGTH, is no unit vector: the pixel has no normal."""
MAX_AWAY = 0.5
"""A visible surface faces the viewer. If more than this share of a map points away, its axes are not those expected."""

PACKAGED = r"(?P<stem>{group}/\d{{6}})_img\.png"
FRAMENET = r"(?P<stem>(.*/)?scene\d{4}_\d\d/frame-\d{6})-color\.png"
LADICKY = r"nyu_normals_gt/(?P<split>{split})/(?P<number>\d{{5}})\.png"
LABELED = "nyu_depth_v2_labeled.mat"


def nyuv2(folder: str, match: str, split: str) -> FolderViews:
    """NYUv2's ``split`` "train" or "test": Ladicky's normals, or the package of surface_normal_uncertainty and DSINE."""
    ladicky = FolderLayout(f"nyu_normals_gt/{split}/00001.png", LADICKY.format(split=split), _ladicky)
    packaged = FolderLayout(f"{split}/000001_img.png", PACKAGED.format(group=split), _packaged)
    return FolderViews(folder, "normal", [ladicky, packaged], match)


def scannet(folder: str, match: str) -> FolderViews:
    """ScanNet: FrameNet's normals, or the package of surface_normal_uncertainty and DSINE."""
    framenet = FolderLayout("scene0000_00/frame-000000-color.png", FRAMENET, _framenet)
    packaged = FolderLayout("scene0000_00/000000_img.png", PACKAGED.format(group=r"scene\d{4}_\d\d"), _packaged)
    return FolderViews(folder, "normal", [framenet, packaged], match)


def paint(file: ImageFile, axes: Axes) -> ImageFile:
    """A published map on our axes; dense_maps.decode_normals reads it. InputError when flipping ``axes`` cannot be right."""
    levels = vectors(file)
    lengths = np.linalg.norm(levels.astype(np.float32) / dense_maps.LEVELS * 2 - 1, axis=-1)
    valid = (lengths >= dense_maps.LEAST_LENGTH) & (lengths <= MAX_LENGTH)
    flipped = np.where(np.array(axes), dense_maps.LEVELS - levels, levels)
    if valid.any() and np.mean(flipped[valid][:, 2] < dense_maps.LEVELS / 2) > MAX_AWAY:
        raise InputError(
            f"{file.name}: most of its normals point away from the viewer; these are not the axes of its set"
        )
    none = dense_maps.encode_normals(np.zeros(3))
    return painted(file.name, np.where(valid[..., None], flipped, none).astype(np.uint8))


def _ladicky(folder: str, match: re.Match) -> View:
    number = int(match["number"])
    path = f"nyu_{match['split']}_rgb/nyu_rgb_{number:04d}.png"
    photo_path = files.join(folder, path)
    try:
        photo = read_image(photo_path)
    except FileNotFoundError:
        photo = _labeled_photo(files.join(folder, LABELED), number, photo_path)
    return View(path, photo, paint(read_image(files.join(folder, match[0])), LEFT_UP_VIEWER))


def _packaged(folder: str, match: re.Match) -> View:
    stem = files.join(folder, match["stem"])
    normals = read_first(f"{stem}_normal.png", f"{stem}_norm.png")
    return View(match[0], read_image(f"{stem}_img.png"), paint(normals, LEFT_UP_VIEWER))


def _framenet(folder: str, match: re.Match) -> View:
    photo, normals = (read_image(files.join(folder, f"{match['stem']}-{kind}.png")) for kind in ("color", "normal"))
    return View(match[0], photo, paint(normals, RIGHT_DOWN_FORWARD))


def _labeled_photo(path: str, number: int, missing: str) -> ImageFile:
    """Photo ``number``, counted from 1, of NYUv2's labeled set, a MATLAB file of version 7.3 with u8[n 3 X Y]."""
    try:
        file = files.open_binary(path)
    except FileNotFoundError as error:
        raise MissingFileError(f"neither {missing} nor {path} is there, one of which holds the photo") from error
    try:
        import h5py  # not among the requirements: no other set needs it
    except ImportError as error:
        raise InputError(f"{path} is an HDF5 file: pip install h5py, or unpack {missing}") from error
    with file, h5py.File(file, "r") as labeled:
        images = labeled["images"]
        if number > len(images):
            raise InputError(f"{path} has {len(images)} photos, none with number {number}")
        return painted(f"{path}, photo {number}", np.ascontiguousarray(images[number - 1].transpose(2, 1, 0)))

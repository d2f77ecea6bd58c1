"""Surface normals of NYUv2 and ScanNet, as dense_maps.encode_normals paints them: right, up, towards the viewer.

Published maps hold unit vectors as levels as well, on other axes. An axis is turned around by 255 - level, without a loss.
"""

import re

import numpy as np

from lumina_jax.data.omni.pictures import colours, painted, read_first
from lumina_jax.data.omni.views import FolderViews, Kind, View
from lumina_jax.data.sources import files
from lumina_jax.data.sources.images import ImageFile, read_image
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.pictures import dense_maps

Axes = tuple[bool, bool, bool]
"""Which of the three axes of a published map run the other way."""

LEFT_UP_VIEWER: Axes = (True, False, False)
"""Ladicky's maps of NYUv2, and those of surface_normal_uncertainty and DSINE (as right, down, forward, but outwards)."""
RIGHT_DOWN_FORWARD: Axes = (False, True, True)
"""FrameNet's maps of ScanNet."""

LONGEST = 1.5
"""What is longer than this, or shorter than dense_maps.LEAST_LENGTH, is no unit vector: the pixel has no normal."""
MOST_BEHIND = 0.5
"""No surface is seen from behind; a map in which more than this share would be has other axes than it should."""

PACKAGED = r"(?P<stem>{group}/\d{{6}})_img\.png"
FRAMENET = r"(?P<stem>(.*/)?scene\d{4}_\d\d/frame-\d{6})-color\.png"
LADICKY = r"nyu_normals_gt/(?P<split>{split})/(?P<number>\d{{5}})\.png"
LABELED = "nyu_depth_v2_labeled.mat"


def nyuv2(folder: str, wanted: str, split: str) -> FolderViews:
    """NYUv2's ``split`` "train" or "test", with Ladicky's normals or as surface_normal_uncertainty and DSINE package it."""
    ladicky = Kind(f"nyu_normals_gt/{split}/00001.png", LADICKY.format(split=split), _ladicky)
    packaged = Kind(f"{split}/000001_img.png", PACKAGED.format(group=split), _packaged)
    return FolderViews(folder, "normal", [ladicky, packaged], wanted)


def scannet(folder: str, wanted: str) -> FolderViews:
    """ScanNet with FrameNet's normals, or as surface_normal_uncertainty and DSINE package it."""
    framenet = Kind("scene0000_00/frame-000000-color.png", FRAMENET, _framenet)
    packaged = Kind("scene0000_00/000000_img.png", PACKAGED.format(group=r"scene\d{4}_\d\d"), _packaged)
    return FolderViews(folder, "normal", [framenet, packaged], wanted)


def paint(file: ImageFile, axes: Axes) -> ImageFile:
    """A published map as ours; dense_maps.decode_normals is the inverse. ValueError when its axes cannot be ``axes``."""
    levels = colours(file)
    lengths = np.linalg.norm(levels.astype(np.float32) / dense_maps.LEVELS * 2 - 1, axis=-1)
    seen = (lengths >= dense_maps.LEAST_LENGTH) & (lengths <= LONGEST)
    turned = np.where(np.array(axes), dense_maps.LEVELS - levels, levels)
    if seen.any() and np.mean(turned[seen][:, 2] < dense_maps.LEVELS / 2) > MOST_BEHIND:
        raise InputError(
            f"{file.name}: most of its normals point away from the viewer; these are not the axes of its set"
        )
    none = dense_maps.encode_normals(np.zeros(3))
    return painted(file.name, np.where(seen[..., None], turned, none).astype(np.uint8))


def _ladicky(folder: str, match: re.Match) -> View:
    number = int(match["number"])
    path = f"nyu_{match['split']}_rgb/nyu_rgb_{number:04d}.png"
    place = files.join(folder, path)
    try:
        photo = read_first(place)
    except FileNotFoundError:
        photo = _labeled_photo(files.join(folder, LABELED), number, place)
    return View(path, photo, paint(read_image(files.join(folder, match[0])), LEFT_UP_VIEWER))


def _packaged(folder: str, match: re.Match) -> View:
    stem = files.join(folder, match["stem"])
    normals = read_first(f"{stem}_normal.png", f"{stem}_norm.png")
    return View(match[0], read_image(f"{stem}_img.png"), paint(normals, LEFT_UP_VIEWER))


def _framenet(folder: str, match: re.Match) -> View:
    photo, normals = (read_image(files.join(folder, f"{match['stem']}-{kind}.png")) for kind in ("color", "normal"))
    return View(match[0], photo, paint(normals, RIGHT_DOWN_FORWARD))


def _labeled_photo(place: str, number: int, missing: str) -> ImageFile:
    """Photo ``number``, from 1, of NYUv2's labeled set, a MATLAB file of version 7.3: u8[n 3 X Y]."""
    try:
        file = files.open_binary(place)
    except FileNotFoundError as error:
        raise MissingFileError(f"neither {missing} nor {place} is there, one of which holds the photo") from error
    try:
        import h5py  # not among the requirements: no other set needs it
    except ImportError as error:
        raise InputError(f"{place} is an HDF5 file: pip install h5py, or unpack {missing}") from error
    with file, h5py.File(file, "r") as held:
        images = held["images"]
        if number > len(images):
            raise InputError(f"{place} has {len(images)} photos, none with number {number}")
        return painted(f"{place}, photo {number}", np.ascontiguousarray(images[number - 1].transpose(2, 1, 0)))

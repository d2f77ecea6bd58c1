"""Depth maps of Virtual KITTI 2 and MPI Sintel, painted by dense_maps.encode_depth with one range for both."""

import re
from collections.abc import Callable

import numpy as np

from lumina_jax.data.omni.pictures import levels, painted
from lumina_jax.data.omni.views import FolderLayout, FolderViews, View
from lumina_jax.data.sources import files
from lumina_jax.data.sources.images import ImageFile, read_image
from lumina_jax.errors import InputError
from lumina_jax.pictures import dense_maps

NEAR, FAR = 0.5, 80.0
"""Metres that are painted white and black. All sets share the request "Depth estimation.", hence one scale."""

VKITTI2_PHOTO = "Scene01/clone/frames/rgb/Camera_0/rgb_00000.jpg"
VKITTI2 = r"(?P<top>(.*/)?)(?P<clip>Scene\d\d/[^/]+)/frames/rgb/(?P<camera>Camera_[01])/rgb_(?P<frame>\d{5})\.jpg"
RGB_PACK, DEPTH_PACK = "vkitti_2.0.3_rgb", "vkitti_2.0.3_depth"
CENTIMETRES = 100

SINTEL_PHOTO = "training/{render}/alley_1/frame_0001.png"
SINTEL = r"(?P<top>(.*/)?)training/{render}/(?P<clip>[^/]+)/frame_(?P<frame>\d{{4}})\.png"
SINTEL_TAG = np.float32(202021.25)
SINTEL_HEADER = 12
"""Bytes: the tag f32, the width i32, the height i32, all little-endian."""


def vkitti2(folder: str, match: str) -> FolderViews:
    """Virtual KITTI 2: every rendered frame of both cameras and its depth."""
    return FolderViews(folder, "depth", [FolderLayout(VKITTI2_PHOTO, VKITTI2, _vkitti2)], match)


def sintel(folder: str, match: str, render: str) -> FolderViews:
    """MPI Sintel's training frames, ``render`` "final" or "clean", and their depth."""
    layout = FolderLayout(SINTEL_PHOTO.format(render=render), SINTEL.format(render=render), _sintel)
    return FolderViews(folder, "depth", [layout], match)


def paint(name: str, metres: np.ndarray) -> ImageFile:
    """Metres f[Y X] as a picture; dense_maps.decode_depth(picture, NEAR, FAR) is the inverse."""
    return painted(name, dense_maps.encode_depth(metres, NEAR, FAR))


def read_vkitti2(file: ImageFile) -> np.ndarray:
    """A depth map of Virtual KITTI 2, u16 centimetres with 65535 for the sky -> metres f64[Y X]."""
    return levels(file, "depth map of 16 bits") / CENTIMETRES


def read_sintel(file: ImageFile) -> np.ndarray:
    """A .dpt file -> metres f32[Y X]; InputError naming it when its tag or its length is wrong."""
    content = file.content
    if len(content) < SINTEL_HEADER or np.frombuffer(content, "<f4", 1)[0] != SINTEL_TAG:
        raise InputError(f"{file.name} is no .dpt file: it does not begin with the tag {SINTEL_TAG}")
    width, height = map(int, np.frombuffer(content, "<i4", 2, offset=4))
    if min(width, height) < 1 or len(content) != SINTEL_HEADER + 4 * width * height:
        raise InputError(
            f"{file.name} has {len(content)} bytes, but a depth map of {width}x{height} takes "
            f"{SINTEL_HEADER + 4 * width * height}; download it again"
        )
    return np.frombuffer(content, "<f4", offset=SINTEL_HEADER).reshape(height, width)


def _vkitti2(folder: str, match: re.Match) -> View:
    top = match["top"].replace(RGB_PACK, DEPTH_PACK)
    depth = f"{top}{match['clip']}/frames/depth/{match['camera']}/depth_{match['frame']}.png"
    return _view(folder, match[0], depth, read_vkitti2)


def _sintel(folder: str, match: re.Match) -> View:
    depth = f"{match['top']}training/depth/{match['clip']}/frame_{match['frame']}.dpt"
    return _view(folder, match[0], depth, read_sintel)


def _view(folder: str, photo: str, depth: str, read: Callable[[ImageFile], np.ndarray]) -> View:
    photo_file, depth_file = (read_image(files.join(folder, path)) for path in (photo, depth))
    return View(photo, photo_file, paint(depth_file.name, read(depth_file)))

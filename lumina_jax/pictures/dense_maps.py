"""Depth, surface normals and class maps as 8-bit pictures, and back, so that a predicted picture can be scored as a map."""

import numpy as np

from lumina_jax.errors import InputError

LEVELS = 255
LEAST_LENGTH = 0.5
"""A colour whose decoded vector is shorter than this stands for a pixel without a normal."""
MAX_CLASSES = 256


def encode_depth(metres: np.ndarray, near: float, far: float) -> np.ndarray:
    """Metres f[Y X] -> gray u8[Y X 3], linear in log depth: ``near`` is white, ``far`` black, the relative error constant.

    Depths outside the range are clipped to it; pixels without a reading (0, negative or not finite) become ``far``.
    Raises InputError unless 0 < near < far.
    """
    _check_range(near, far)
    valid = np.isfinite(metres) & (metres > 0)
    share = np.log(far / np.clip(np.where(valid, metres, far), near, far)) / np.log(far / near)
    gray = np.rint(LEVELS * share).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def decode_depth(picture: np.ndarray, near: float, far: float) -> np.ndarray:
    """Inverse of :func:`encode_depth`: u8[Y X 3] -> metres f32[Y X], with a relative error of at most :func:`depth_error`."""
    _check_range(near, far)
    share = picture.astype(np.float32).mean(axis=-1) / LEVELS
    return (far * (near / far) ** share).astype(np.float32)


def depth_error(near: float, far: float) -> float:
    """The largest relative rounding error of 8-bit depth, that of half a level; 1% for 0.5 to 80 m."""
    _check_range(near, far)
    return (far / near) ** (0.5 / LEVELS) - 1


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Unit vectors f[Y X 3] (right, up, towards the viewer) -> u8[Y X 3], scaled from -1..1 to 0..255.

    The zero vector, a pixel without a reading, becomes gray.
    """
    return np.rint((np.clip(normals, -1, 1) + 1) / 2 * LEVELS).astype(np.uint8)


def decode_normals(picture: np.ndarray) -> np.ndarray:
    """Inverse of :func:`encode_normals`: u8[Y X 3] -> unit vectors f32[Y X 3], at most 0.4 degrees off.

    Where the decoded vector is shorter than LEAST_LENGTH the result is zero: no normal.
    """
    vectors = picture.astype(np.float32) / LEVELS * 2 - 1
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(lengths >= LEAST_LENGTH, vectors / np.maximum(lengths, LEAST_LENGTH), 0).astype(np.float32)


def palette(classes: int) -> np.ndarray:
    """PASCAL VOC's colours u8[n 3] for ``classes`` classes; class 0 is black. The bits of a number spread over the channels.

    Raises InputError outside 1 to MAX_CLASSES.
    """
    if not 1 <= classes <= MAX_CLASSES:
        raise InputError(f"a palette of {classes} classes; choose 1 to {MAX_CLASSES}")
    numbers = np.arange(classes)
    colours = np.zeros((classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def encode_classes(classes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Class numbers i[Y X] -> u8[Y X 3] in ``colours`` u8[n 3]. Raises InputError for a number without a colour."""
    if classes.size and not 0 <= classes.min() <= classes.max() < len(colours):
        raise InputError(f"classes from {classes.min()} to {classes.max()}, but colours for 0 to {len(colours) - 1}")
    return colours[classes]


def decode_classes(picture: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Inverse of :func:`encode_classes`: u8[Y X 3] -> i32[Y X], the class of the nearest colour, the first on ties."""
    packed = picture.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    distinct, indices = np.unique(packed, return_inverse=True)
    pixels = np.stack([distinct >> 16, distinct >> 8 & 255, distinct & 255], axis=-1)
    targets = colours.astype(np.int32)
    # |p - c|² without |p|², which is the same for every c and so does not change the argmin.
    distances = np.square(targets).sum(axis=1) - 2 * pixels @ targets.T
    return distances.argmin(axis=1).astype(np.int32)[indices].reshape(packed.shape)


def _check_range(near: float, far: float) -> None:
    if not 0 < near < far < np.inf:
        raise InputError(f"depth from {near} to {far} m; need 0 < near < far")

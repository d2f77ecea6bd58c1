"""Boxes and pose skeletons: drawn into pictures and read back from them.

A point is (x, y) in px from the upper left corner of a picture; the centre of the first pixel is (0.5, 0.5).
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from lumina_jax.errors import InputError

Box = tuple[int, int, int, int]
"""(left, upper, right, lower) in px; right and lower are exclusive."""

FRAME = (255, 0, 255)
FRAME_TOLERANCE = 90.0
"""A pixel belongs to a frame when its RGB distance to the frame's colour is at most this."""
BONE_BRIGHTNESS = 0.55
"""Brightness of a bone as a share of its second joint's."""
MIN_DOT_PIXELS = 2
"""A patch of a joint's colour with fewer pixels is noise, not a dot."""


def draw_box(picture: np.ndarray, box: Box, thickness: int, colour: tuple[int, int, int] = FRAME) -> np.ndarray:
    """A copy of a picture u8[Y X 3] with a frame of ``thickness`` px drawn along the inside of ``box``.

    The box is clipped to the picture. Raises InputError when nothing of it is left.
    """
    height, width, _ = picture.shape
    left, upper, right, lower = np.clip(box, 0, [width, height, width, height])
    if right - left < 1 or lower - upper < 1:
        raise InputError(f"the box {tuple(box)} has no pixel in a picture of {width}x{height}")
    drawn = picture.copy()
    inner = picture[upper + thickness : lower - thickness, left + thickness : right - thickness]
    drawn[upper:lower, left:right] = colour
    drawn[upper + thickness : lower - thickness, left + thickness : right - thickness] = inner
    return drawn


def read_box(picture: np.ndarray, colour: tuple[int, int, int] = FRAME) -> Box | None:
    """The bounds of the largest connected patch of the frame's colour in a picture u8[Y X 3]; None if it has no such pixel."""
    distances = np.linalg.norm(picture.astype(np.float32) - np.array(colour, np.float32), axis=-1)
    labels, count = ndimage.label(distances <= FRAME_TOLERANCE, np.ones((3, 3)))
    if not count:
        return None
    largest = 1 + int(np.bincount(labels.ravel())[1:].argmax())
    rows, columns = ndimage.find_objects(labels)[largest - 1]
    return columns.start, rows.start, columns.stop, rows.stop


def joint_colours(joints: int) -> np.ndarray:
    """``joints`` fully saturated colours u8[J 3] with evenly spaced hues."""
    colours = [colorsys.hsv_to_rgb(joint / joints, 1.0, 1.0) for joint in range(joints)]
    return np.rint(255 * np.array(colours)).astype(np.uint8)


def draw_skeletons(
    size: tuple[int, int],
    people: Sequence[np.ndarray],
    bones: Sequence[tuple[int, int]],
    dots: Sequence[float],
    lines: Sequence[float],
) -> np.ndarray:
    """Skeletons on black: u8[Y X 3] of ``size`` (width, height).

    Each of ``people`` is f[J 2] points, NaN for an invisible joint. ``bones`` are pairs of joint indices; a bone has the colour of
    its second joint, darkened. ``dots`` are joint radii and ``lines`` half bone widths, in px, one per person.
    """
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    for joints, dot, line in zip(people, dots, lines, strict=True):
        colours = joint_colours(len(joints))
        for first, second in bones:
            if np.isfinite(joints[[first, second]]).all():
                inside, window = stroke(picture.shape[:2], joints[first], joints[second], line)
                picture[window][inside] = BONE_BRIGHTNESS * colours[second]
        for joint, colour in zip(joints, colours, strict=True):
            if np.isfinite(joint).all():
                inside, window = stroke(picture.shape[:2], joint, joint, dot)
                picture[window][inside] = colour
    return picture


def read_joints(picture: np.ndarray, joints: int) -> list[np.ndarray]:
    """The centres f64[n 2] of the dots of each joint's colour in a picture of skeletons u8[Y X 3], for ``joints`` joints."""
    bright = joint_colours(joints).astype(np.float32)
    palette = np.concatenate([bright, BONE_BRIGHTNESS * bright, np.zeros((1, 3), np.float32)])
    foreground = np.flatnonzero(picture.reshape(-1, 3).any(axis=1))
    pixels = picture.reshape(-1, 3)[foreground].astype(np.float32)
    nearest = np.full(picture.shape[0] * picture.shape[1], len(palette) - 1)
    nearest[foreground] = (np.square(palette).sum(axis=1) - 2 * pixels @ palette.T).argmin(axis=1)
    return [_centres(nearest.reshape(picture.shape[:2]) == joint) for joint in range(joints)]


def stroke(
    shape: tuple[int, int], start: np.ndarray, stop: np.ndarray, radius: float
) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Rasterises the segment from ``start`` to ``stop`` with round ends on a picture of ``shape`` (Y, X).

    Returns bool[h w], true within ``radius`` px of the segment, and the (rows, columns) window of the picture it covers.
    """
    low = np.floor(np.minimum(start, stop) - radius).astype(int)
    high = np.ceil(np.maximum(start, stop) + radius).astype(int)
    columns, rows = (slice(*np.clip((a, b), 0, side)) for a, b, side in zip(low, high, shape[::-1], strict=True))
    x, y = np.meshgrid(np.arange(columns.start, columns.stop) + 0.5, np.arange(rows.start, rows.stop) + 0.5)
    (x0, y0), (dx, dy) = start, np.subtract(stop, start)
    length = dx * dx + dy * dy
    along = np.clip(((x - x0) * dx + (y - y0) * dy) / length, 0, 1) if length else 0.0
    return np.hypot(x - x0 - along * dx, y - y0 - along * dy) <= radius, (rows, columns)


def _centres(pixels: np.ndarray) -> np.ndarray:
    """The centres f64[n 2] of the connected patches of bool[Y X] with at least MIN_DOT_PIXELS pixels."""
    if not pixels.any():
        return np.zeros((0, 2))
    labels, _ = ndimage.label(pixels, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    dots = 1 + np.flatnonzero(sizes >= MIN_DOT_PIXELS)
    centres = ndimage.center_of_mass(pixels, labels, dots) if len(dots) else []
    return np.array([(x + 0.5, y + 0.5) for y, x in centres]).reshape(-1, 2)

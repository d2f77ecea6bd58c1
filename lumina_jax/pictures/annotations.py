"""Boxes and skeletons drawn into pictures, and read back from them.

A point is (x, y) in px from the upper left corner of a picture; the centre of its first pixel is (0.5, 0.5).
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from lumina_jax.errors import InputError

Box = tuple[int, int, int, int]
"""Left, upper, right, lower in px; right and lower are one past the last pixel."""

FRAME = (255, 0, 255)
NEAR_FRAME = 90.0
"""Distance in RGB within which a pixel belongs to a frame."""
BONE_SHARE = 0.55
"""A bone is so bright, compared to the joint it leads to."""
LEAST_PIXELS = 2
"""Smaller specks of a joint's colour are none."""


def draw_box(picture: np.ndarray, box: Box, thickness: int, colour: tuple[int, int, int] = FRAME) -> np.ndarray:
    """A copy of a picture u8[Y X 3] with the inner edge of ``box`` in ``colour``; what lies outside the picture is cut off."""
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
    """The bounds of the largest connected patch of a frame's colour in u8[Y X 3]; None where there is none."""
    distances = np.linalg.norm(picture.astype(np.float32) - np.array(colour, np.float32), axis=-1)
    labels, count = ndimage.label(distances <= NEAR_FRAME, np.ones((3, 3)))
    if not count:
        return None
    largest = 1 + int(np.bincount(labels.ravel())[1:].argmax())
    rows, columns = ndimage.find_objects(labels)[largest - 1]
    return columns.start, rows.start, columns.stop, rows.stop


def joint_colours(joints: int) -> np.ndarray:
    """As many bright colours u8[J 3], once around the circle of hues."""
    hues = [colorsys.hsv_to_rgb(joint / joints, 1.0, 1.0) for joint in range(joints)]
    return np.rint(255 * np.array(hues)).astype(np.uint8)


def draw_skeletons(
    size: tuple[int, int],
    people: Sequence[np.ndarray],
    bones: Sequence[tuple[int, int]],
    dots: Sequence[float],
    lines: Sequence[float],
) -> np.ndarray:
    """People, each f[J 2] points with NaN for a joint that is not seen, on black: u8[Y X 3] of ``size`` (width, height).

    ``bones`` are pairs of joints, drawn darker in the colour of the second; ``dots`` and ``lines`` are radius and half
    thickness in px for each person.
    """
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    for joints, dot, line in zip(people, dots, lines, strict=True):
        colours = joint_colours(len(joints))
        for first, second in bones:
            if np.isfinite(joints[[first, second]]).all():
                inside, place = stroke(picture.shape[:2], joints[first], joints[second], line)
                picture[place][inside] = BONE_SHARE * colours[second]
        for joint, colour in zip(joints, colours, strict=True):
            if np.isfinite(joint).all():
                inside, place = stroke(picture.shape[:2], joint, joint, dot)
                picture[place][inside] = colour
    return picture


def read_joints(picture: np.ndarray, joints: int) -> list[np.ndarray]:
    """For each of so many joints the centres f64[n 2] of the dots of its colour in a picture of skeletons u8[Y X 3]."""
    bright = joint_colours(joints).astype(np.float32)
    known = np.concatenate([bright, BONE_SHARE * bright, np.zeros((1, 3), np.float32)])
    seen = np.flatnonzero(picture.reshape(-1, 3).any(axis=1))
    pixels = picture.reshape(-1, 3)[seen].astype(np.float32)
    nearest = np.full(picture.shape[0] * picture.shape[1], len(known) - 1)
    nearest[seen] = (np.square(known).sum(axis=1) - 2 * pixels @ known.T).argmin(axis=1)
    return [_centres(nearest.reshape(picture.shape[:2]) == joint) for joint in range(joints)]


def stroke(
    shape: tuple[int, int], start: np.ndarray, stop: np.ndarray, reach: float
) -> tuple[np.ndarray, tuple[slice, slice]]:
    """The pixels at most ``reach`` px from a line between two points of a picture of ``shape`` (Y, X).

    Returns bool[h w] and the (rows, columns) of the picture that it covers.
    """
    low = np.floor(np.minimum(start, stop) - reach).astype(int)
    high = np.ceil(np.maximum(start, stop) + reach).astype(int)
    columns, rows = (slice(*np.clip((a, b), 0, side)) for a, b, side in zip(low, high, shape[::-1], strict=True))
    x, y = np.meshgrid(np.arange(columns.start, columns.stop) + 0.5, np.arange(rows.start, rows.stop) + 0.5)
    (x0, y0), (dx, dy) = start, np.subtract(stop, start)
    length = dx * dx + dy * dy
    along = np.clip(((x - x0) * dx + (y - y0) * dy) / length, 0, 1) if length else 0.0
    return np.hypot(x - x0 - along * dx, y - y0 - along * dy) <= reach, (rows, columns)


def _centres(pixels: np.ndarray) -> np.ndarray:
    """The centres f64[n 2] of the connected patches of bool[Y X] that are no specks."""
    if not pixels.any():
        return np.zeros((0, 2))
    labels, _ = ndimage.label(pixels, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    kept = 1 + np.flatnonzero(sizes >= LEAST_PIXELS)
    found = ndimage.center_of_mass(pixels, labels, kept) if len(kept) else []
    return np.array([(x + 0.5, y + 0.5) for y, x in found]).reshape(-1, 2)

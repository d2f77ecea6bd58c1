"""The pixel judge: decides which claims of a caption are true of a picture. It knows the world's geometry, but no model."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from lumina_jax.errors import InputError
from lumina_jax.toyworld.captions import Caption, Count, grade
from lumina_jax.toyworld.figures import PERSON, POSES, Pose
from lumina_jax.toyworld.scenes import BACKGROUNDS, COLOURS, SHAPES, Object, Pixels, Scene, mask, radii

MIN_IOU = 0.75
"""A patch of colour is an object when its IoU with some shape of the world is at least this."""
SEARCH = 4
"""Largest distance in px, along each axis, between the centre of a patch and that of the shape fitted to it."""
MAX_COLOUR_DISTANCE = 80.0
"""A pixel further than this in RGB from all colours of the world has none of them."""
SPOT = 3
"""Side in px of the smallest wrong square that counts as an extra thing; thinner lines are blurred edges."""
MAX_OBJECTS = 6
"""Only the largest patches of colour are read as objects; a picture with more fails "nothing else" anyway."""

Kind = tuple[str, Pose]
"""A shape and its pose."""
KINDS: tuple[Kind, ...] = tuple((shape, ()) for shape in SHAPES)
ALL_KINDS = (*KINDS, *((PERSON, pose) for pose in POSES))

NAMES = (*BACKGROUNDS, *COLOURS)
NO_COLOUR = len(NAMES)


class Fact(NamedTuple):
    """One claim in words, and whether it is true."""

    name: str
    right: bool


@dataclass(frozen=True)
class Verdict:
    """The facts of a caption in order; the last are "nothing else" and, if a size was requested, the size."""

    facts: tuple[Fact, ...]

    @property
    def all_right(self) -> bool:
        return all(fact.right for fact in self.facts)


class Perception(NamedTuple):
    """The scene read from a picture, and whether the picture shows nothing besides it."""

    scene: Scene
    clean: bool


def judge(image: np.ndarray, caption: Caption, size: Pixels | None = None, kinds: tuple[Kind, ...] = KINDS) -> Verdict:
    """Checks every claim of ``caption`` on a picture u8[Y X 3], and its ``size`` (width, height) in px unless None.

    Raises InputError for an array that is no such picture.
    """
    perception = perceive(image, kinds)
    facts = [
        Fact(str(claim), right and (perception.clean or not isinstance(claim, Count)))
        for claim, right in zip(caption.claims, grade(perception.scene, caption.claims), strict=True)
    ]
    if size is not None:
        facts.append(Fact(f"size {size[0]}x{size[1]}", perception.scene.canvas == tuple(size)))
    return Verdict(tuple(facts))


def perceive(image: np.ndarray, kinds: tuple[Kind, ...] = KINDS) -> Perception:
    """Reads the scene in a picture u8[Y X 3]: its most frequent background colour and all objects of ``kinds``."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"a picture of shape {image.shape} and dtype {image.dtype}; the judge takes uint8[Y X 3]")
    canvas = image.shape[1], image.shape[0]
    colours = _colours(image)
    counts = np.bincount(colours.ravel(), minlength=NO_COLOUR + 1)
    background = NAMES[int(counts[: len(BACKGROUNDS)].argmax())]
    min_pixels = MIN_IOU * _templates(radii(canvas)["small"], kinds)[1].min()
    present = [colour for colour in COLOURS if counts[NAMES.index(colour)] >= min_pixels]
    blobs = [blob for colour in present for blob in _blobs(colours, colour, min_pixels)]
    largest = sorted(blobs, key=lambda blob: -blob.pixels.sum())[:MAX_OBJECTS]
    objects = tuple(thing for blob in largest if (thing := _recognise(blob, canvas, kinds)) is not None)
    scene = Scene(*canvas, background, objects)
    return Perception(scene, not _has_spot(colours != _expected_colours(scene)))


class _Blob(NamedTuple):
    """A connected patch of one colour: its pixels bool[h w] and the position of their upper left corner in px."""

    colour: str
    pixels: np.ndarray
    top: int
    left: int


def _colours(image: np.ndarray) -> np.ndarray:
    """Each pixel's nearest colour as an index u8[Y X] into NAMES, or NO_COLOUR."""
    bins = (image >> 3).astype(np.int32)
    return _colour_table()[(bins[..., 0] << 10) | (bins[..., 1] << 5) | bins[..., 2]]


@lru_cache(maxsize=1)
def _colour_table() -> np.ndarray:
    """The nearest colour of each RGB value in steps of 8: u8[32768]."""
    levels = np.arange(32) * 8 + 3.5
    values = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 1, 3)
    palette = np.array([*BACKGROUNDS.values(), *COLOURS.values()])
    distances = np.linalg.norm(values - palette, axis=-1)
    return np.where(distances.min(1) > MAX_COLOUR_DISTANCE, NO_COLOUR, distances.argmin(1)).astype(np.uint8)


def _expected_colours(scene: Scene) -> np.ndarray:
    """The result of :func:`_colours` for a perfect picture of the scene."""
    colours = np.full((scene.height, scene.width), NAMES.index(scene.background), np.uint8)
    for thing in scene.objects:
        inside = mask(thing.shape, radii(scene.canvas)[thing.size], thing.pose)
        colours[thing.box(scene.canvas)][inside] = NAMES.index(thing.colour)
    return colours


def _blobs(colours: np.ndarray, colour: str, min_pixels: float) -> list[_Blob]:
    """The connected patches of a colour with at least ``min_pixels`` pixels."""
    labels, _ = ndimage.label(colours == NAMES.index(colour))
    large = 1 + np.flatnonzero(np.bincount(labels.ravel())[1:] >= min_pixels)
    boxes = ndimage.find_objects(labels) if large.size else []
    return [
        _Blob(colour, labels[boxes[number - 1]] == number, *(side.start for side in boxes[number - 1]))
        for number in large
    ]


def _recognise(blob: _Blob, canvas: Pixels, kinds: tuple[Kind, ...]) -> Object | None:
    """The object that fits a blob best, or None if its IoU is below MIN_IOU."""
    sizes = radii(canvas)
    exact = {size: radius for size, radius in sizes.items() if blob.pixels.shape == (2 * radius, 2 * radius)}
    search = 0 if exact else SEARCH
    fits = [_best_fit(blob, size, radius, search, canvas, kinds) for size, radius in (exact or sizes).items()]
    iou, thing = max(fits, key=lambda fit: fit[0])
    return thing if iou >= MIN_IOU else None


def _best_fit(
    blob: _Blob, size: str, radius: int, search: int, canvas: Pixels, kinds: tuple[Kind, ...]
) -> tuple[float, Object]:
    """Fits every kind with one radius up to ``search`` px from the blob's centre, inside the canvas: the best (IoU, object)."""
    height, width = blob.pixels.shape
    x, y = blob.left + width // 2, blob.top + height // 2
    margin = radius + search
    window = np.zeros((2 * margin, 2 * margin), np.float32)
    rows, inside_rows = _overlap(blob.top, height, y - margin, 2 * margin)
    columns, inside_columns = _overlap(blob.left, width, x - margin, 2 * margin)
    window[inside_rows, inside_columns] = blob.pixels[rows, columns]
    templates, areas = _templates(radius, kinds)
    shifts = 2 * search + 1
    views = np.lib.stride_tricks.sliding_window_view(window, (2 * radius, 2 * radius)).reshape(shifts * shifts, -1)
    common = views @ templates
    ious = (common / (blob.pixels.sum() + areas - common)).reshape(shifts, shifts, -1)
    xs, ys = (centre + np.arange(-search, search + 1) for centre in (x, y))
    ious[(ys < radius) | (ys > canvas[1] - radius)] = 0
    ious[:, (xs < radius) | (xs > canvas[0] - radius)] = 0
    down, across, kind = np.unravel_index(int(ious.argmax()), ious.shape)
    shape, pose = kinds[kind]
    return float(ious[down, across, kind]), Object(shape, blob.colour, size, int(xs[across]), int(ys[down]), pose)


def _overlap(start: int, length: int, window: int, window_length: int) -> tuple[slice, slice]:
    """The overlap of [start, start + length) and a window on the same axis, as slices relative to the start of each."""
    low, high = max(start, window), min(start + length, window + window_length)
    return slice(low - start, high - start), slice(low - window, high - window)


@lru_cache(maxsize=64)
def _templates(radius: int, kinds: tuple[Kind, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The masks of all kinds with one radius as columns, f32[(2r)(2r) S], and their numbers of pixels, f32[S]."""
    columns = np.stack([mask(shape, radius, pose).ravel() for shape, pose in kinds], axis=-1).astype(np.float32)
    return columns, columns.sum(0)


def _has_spot(wrong: np.ndarray) -> bool:
    """Whether bool[Y X] is true on all of some square of SPOT x SPOT px."""
    if not wrong.any():
        return False
    rows = np.logical_and.reduce([wrong[i : len(wrong) - SPOT + 1 + i] for i in range(SPOT)])
    width = wrong.shape[1]
    return bool(np.logical_and.reduce([rows[:, i : width - SPOT + 1 + i] for i in range(SPOT)]).any())

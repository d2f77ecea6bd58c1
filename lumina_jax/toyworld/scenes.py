"""Scenes of coloured shapes: a seeded, infinite data set with exact ground truth.

A :class:`Scene` is the complete description of a picture. The pixels and every other map (segmentation, boxes, keypoints)
are rendered from it with the same geometry: :func:`radii`, :func:`mask` and :meth:`Object.box`.

Radii and centres are multiples of 8 px and objects are at least 8 px apart, so a 16 px patch never shows two objects and the
distinct patches of all scenes are few enough for an exact codebook.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import TypeVar

import numpy as np

from lumina_jax.errors import InputError
from lumina_jax.toyworld.figures import PERSON, POSES, RADIUS, Pose, person

COLOURS = {
    "red": (225, 45, 45),
    "green": (35, 160, 65),
    "blue": (45, 85, 225),
    "yellow": (250, 210, 45),
    "purple": (145, 50, 175),
    "cyan": (70, 205, 220),
}
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}
SHAPES = ("circle", "square", "triangle")
ALL_SHAPES = (*SHAPES, PERSON)
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
REGIONS = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)

GAP = 4
"""Minimum distance in px between the boxes of two objects."""
CLEAR = 8
"""Minimum difference in px between the horizontal and the vertical distance of two objects: it makes relations unambiguous."""
MIN_SIDE = 32
"""Minimum side of a canvas in px: its large objects just fit."""
MAX_SNAP = 16
"""Coarsest grid of centres, in px, on which every object fits every canvas."""

Pixels = tuple[int, int]
Triple = tuple[str, str, str]
PairCentres = tuple[str, str, np.ndarray]
"""The sizes of two objects and their possible centres, i32[n 4] as (x, y, x, y)."""
Pairs = dict[str, list[PairCentres]]
"""Relation -> the possible centres of two objects in that relation, for each pair of sizes."""
T = TypeVar("T")


def radii(canvas: Pixels) -> dict[str, int]:
    """Size word -> radius in px, half the side of an object's box, on a canvas of (width, height)."""
    short = min(canvas)
    small = 8 * max(1, (short + 32) // 64)
    return {"small": small, "large": small + 8 * max(1, (short + 64) // 128)}


@lru_cache(maxsize=256)
def mask(shape: str, radius: int, pose: Pose = ()) -> np.ndarray:
    """The pixels of a shape in its box: bool[2r 2r], read-only. The shape touches all four sides of the box.

    Raises InputError for an unknown shape.
    """
    if shape == PERSON:
        return person(radius, pose)
    steps = np.arange(2 * radius) + 0.5 - radius
    across, down = steps[None, :], steps[:, None]
    if shape == "circle":
        inside = across**2 + down**2 <= radius**2
    elif shape == "square":
        inside = np.ones((2 * radius, 2 * radius), bool)
    elif shape == "triangle":
        inside = 2 * np.abs(across) <= down + radius + 0.5
    else:
        raise InputError(f"no shape {shape!r}; the shapes are {', '.join(ALL_SHAPES)}")
    inside.flags.writeable = False
    return inside


@dataclass(frozen=True)
class Object:
    """One shape: its attributes in words, its centre in px from the upper left corner, and its pose if it has limbs."""

    shape: str
    colour: str
    size: str
    x: int
    y: int
    pose: Pose = ()

    def box(self, canvas: Pixels) -> tuple[slice, slice]:
        """The (rows, columns) of its box on a canvas of (width, height)."""
        radius = radii(canvas)[self.size]
        return slice(self.y - radius, self.y + radius), slice(self.x - radius, self.x + radius)


def relation(subject: Object, other: Object) -> str:
    """The relation of ``subject`` to ``other``, along the axis of their larger distance."""
    dx, dy = subject.x - other.x, subject.y - other.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def is_of_size(thing: Object, canvas: Pixels) -> bool:
    """Whether the shape may have this size on the canvas: persons have only one radius, other shapes any."""
    return thing.shape != PERSON or radii(canvas)[thing.size] == RADIUS


def clear(first: Object, second: Object, canvas: Pixels) -> bool:
    """Whether two objects may be in one scene: at least GAP apart, and in an unambiguous relation."""
    touching = radii(canvas)[first.size] + radii(canvas)[second.size]
    dx, dy = abs(first.x - second.x), abs(first.y - second.y)
    return max(dx, dy) >= touching + GAP and abs(dx - dy) >= CLEAR


def region(thing: Object, canvas: Pixels) -> str:
    """The ninth of the canvas that holds the object's centre; the borders are at 42% and 58% of each side."""
    axes = zip((thing.x, thing.y), canvas, strict=True)
    column, row = (int(centre > 0.42 * side) + int(centre > 0.58 * side) for centre, side in axes)
    return REGIONS[row][column]


@dataclass(frozen=True)
class Scene:
    """The ground truth of a picture: canvas in px, background colour, and objects that do not touch."""

    width: int
    height: int
    background: str
    objects: tuple[Object, ...]

    @property
    def canvas(self) -> Pixels:
        return self.width, self.height

    def render(self) -> np.ndarray:
        """The picture, u8[Y X 3]."""
        sizes = radii(self.canvas)
        pixels = _blank(self.canvas, self.background).copy()
        for thing in self.objects:
            stamp = _stamp(thing.shape, thing.pose, thing.colour, self.background, sizes[thing.size])
            pixels[thing.box(self.canvas)] = stamp
        return pixels


@lru_cache(maxsize=256)
def _blank(canvas: Pixels, background: str) -> np.ndarray:
    return np.full((canvas[1], canvas[0], 3), BACKGROUNDS[background], np.uint8)


@lru_cache(maxsize=1024)
def _stamp(shape: str, pose: Pose, colour: str, background: str, radius: int) -> np.ndarray:
    """The picture of a shape in its box, u8[2r 2r 3]. Boxes never overlap, so a scene is drawn by copying stamps."""
    pixels = np.where(mask(shape, radius, pose)[..., None], COLOURS[colour], BACKGROUNDS[background])
    return pixels.astype(np.uint8)


@dataclass(frozen=True)
class World:
    """The distribution of scenes. The default is the mini world.

    ``snap`` is the grid of object centres in px; ``single_share`` the share of scenes with one object, all others have two.
    ``held_out`` lists triples (colour and shape of a subject, its relation) that no training scene shows, whichever of its
    objects is taken as the subject.
    """

    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = ("red", "green", "blue", "yellow")
    backgrounds: tuple[str, ...] = ("white", "black")
    snap: int = 16
    single_share: float = 0.4
    held_out: tuple[Triple, ...] = (
        ("red", "triangle", "left of"),
        ("blue", "circle", "above"),
        ("yellow", "square", "right of"),
    )

    def __post_init__(self):
        for name, known in (("shapes", ALL_SHAPES), ("colours", COLOURS), ("backgrounds", BACKGROUNDS)):
            chosen = getattr(self, name)
            if not chosen or not set(chosen) <= set(known):
                raise InputError(f"world.{name}={chosen}; choose at least one of {', '.join(known)}")
        if not 1 <= self.snap <= MAX_SNAP:
            raise InputError(f"world.snap={self.snap} px; choose 1 to {MAX_SNAP}")
        if not 0 <= self.single_share <= 1:
            raise InputError(f"world.single_share={self.single_share} is not in [0, 1]")
        for colour, shape, word in self.held_out:
            if colour not in self.colours or shape not in self.shapes or word not in RELATIONS:
                raise InputError(f"world.held_out names {colour} {shape} {word}, which this world cannot show")
        if len(self.held_out) >= len(self.shapes) * len(self.colours):
            raise InputError(f"world.held_out has {len(self.held_out)} triples; leave one kind of object without any")

    def scene(self, size: Pixels, seed: int, index: int, held_out: bool = False) -> Scene:
        """Scene ``index`` of stream ``seed`` on a canvas of ``size`` (width, height): a pure function of its arguments.

        With ``held_out`` every scene is a pair whose first object is the subject of a held-out triple; without, none is.
        Raises InputError when the canvas is too small, too large for persons, or has no room for any held-out triple.
        """
        canvas = int(size[0]), int(size[1])
        if min(canvas) < MIN_SIDE:
            raise InputError(f"a canvas of {canvas[0]}x{canvas[1]} px; each side must be at least {MIN_SIDE}")
        if PERSON in self.shapes and RADIUS not in radii(canvas).values():
            raise InputError(f"no size of a {canvas[0]}x{canvas[1]} px canvas is that of persons; choose a smaller one")
        rng = np.random.default_rng((seed, index, *canvas, int(held_out)))
        background = pick(rng, self.backgrounds)
        pairs = _pairs(canvas, self.snap)
        if held_out:
            triples = tuple(triple for triple in self.held_out if triple[2] in pairs)
            if not triples:
                raise InputError(
                    f"a canvas of {canvas[0]}x{canvas[1]} px has no room for any triple of {self.held_out}"
                )
            objects = self._pair(rng, pairs, canvas, triples)
        elif pairs and rng.random() >= self.single_share:
            objects = self._pair(rng, pairs, canvas)
        else:
            objects = self._single(rng, canvas)
        posed = (replace(thing, pose=pick(rng, POSES)) if thing.shape == PERSON else thing for thing in objects)
        return Scene(*canvas, background, tuple(posed))

    def is_held_out(self, subject: Object, other: Object) -> bool:
        """Whether the pair shows a held-out triple, with either object as the subject."""
        word = relation(subject, other)
        return (subject.colour, subject.shape, word) in self.held_out or (
            (other.colour, other.shape, INVERSE[word]) in self.held_out
        )

    def _single(self, rng: np.random.Generator, canvas: Pixels) -> tuple[Object, ...]:
        while True:
            size = pick(rng, SIZES)
            x, y = (int(pick(rng, _centres(side, radii(canvas)[size], self.snap))) for side in canvas)
            thing = Object(pick(rng, self.shapes), pick(rng, self.colours), size, x, y)
            if is_of_size(thing, canvas):
                return (thing,)

    def _pair(
        self, rng: np.random.Generator, pairs: Pairs, canvas: Pixels, triples: tuple[Triple, ...] = ()
    ) -> tuple[Object, ...]:
        """Two objects, the first the subject of one of ``triples``; without any, a pair that shows no held-out triple."""
        while True:
            if triples:
                colour, shape, word = pick(rng, triples)
            else:
                word, colour, shape = (pick(rng, options) for options in (tuple(pairs), self.colours, self.shapes))
            first, second, centres = pick(rng, pairs[word])
            ax, ay, bx, by = pick(rng, centres).tolist()
            other = Object(pick(rng, self.shapes), pick(rng, self.colours), second, bx, by)
            objects = Object(shape, colour, first, ax, ay), other
            if (triples or not self.is_held_out(*objects)) and all(is_of_size(thing, canvas) for thing in objects):
                return objects

    def centres(self, size: str, canvas: Pixels) -> list[Pixels]:
        """The possible centres (x, y) of an object of ``size`` on a canvas, row by row."""
        xs, ys = (_centres(side, radii(canvas)[size], self.snap) for side in canvas)
        return [(x, y) for y in ys for x in xs]


MINI = World()
FULL = World(colours=tuple(COLOURS), backgrounds=tuple(BACKGROUNDS))
OMNI = World(shapes=ALL_SHAPES)
"""The mini world with persons."""


@lru_cache(maxsize=256)
def _pairs(canvas: Pixels, snap: int) -> Pairs:
    """All placements of two clear objects on a canvas; empty when two objects do not fit."""
    pairs: Pairs = {}
    for first, second in product(SIZES, repeat=2):
        for word, centres in _pair_centres(canvas, radii(canvas)[first], radii(canvas)[second], snap).items():
            pairs.setdefault(word, []).append((first, second, centres))
    return pairs


def _pair_centres(canvas: Pixels, first: int, second: int, snap: int) -> dict[str, np.ndarray]:
    """Relation -> the centres i32[n 4] of objects of two radii in that relation, for each relation that fits the canvas."""
    spans = [_centres(side, radius, snap) for radius in (first, second) for side in canvas]
    centres = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 4)
    dx, dy = (centres[:, :2] - centres[:, 2:]).T
    apart = np.maximum(abs(dx), abs(dy)) >= first + second + GAP
    across, clear = abs(dx) > abs(dy), apart & (abs(abs(dx) - abs(dy)) >= CLEAR)
    masks = {
        "left of": clear & across & (dx < 0),
        "right of": clear & across & (dx > 0),
        "above": clear & ~across & (dy < 0),
        "below": clear & ~across & (dy > 0),
    }
    return {word: centres[keep].astype(np.int32) for word, keep in masks.items() if keep.any()}


def _centres(side: int, radius: int, snap: int) -> range:
    """The possible centres of an object along an axis of ``side`` px."""
    return range(-(-radius // snap) * snap, side - radius + 1, snap)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, with equal probabilities."""
    return options[int(rng.integers(len(options)))]

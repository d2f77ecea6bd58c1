"""Scenes of coloured shapes: a seeded, infinite data set with exact ground truth.

A :class:`Scene` is the whole truth about a picture. Pixels are rendered from it, and every other map (segmentation, boxes,
keypoints, edits) can be, because the geometry has one home here: :func:`radii`, :func:`mask` and :meth:`Object.box`.

Radii and centres are multiples of 8 px and objects keep 8 px apart, so a 16 px patch never shows two objects and the
patches of all scenes form a small dictionary that a patch quantiser holds exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
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
"""Least distance in px between the boxes of two objects."""
CLEAR = 8
"""Least difference in px between the distances across and down, so that a relation is never ambiguous."""
SHORTEST = 32
"""Least side of a canvas in px: the largest object of the smallest canvas just fits."""
COARSEST = 16
"""Coarsest grid of centres in px on which every object fits every canvas."""

Pixels = tuple[int, int]
Triple = tuple[str, str, str]
Places = tuple[str, str, np.ndarray]
"""Sizes of two objects and their possible centres, i32[n 4] as (x, y, x, y)."""
Pairs = dict[str, tuple[Places, ...]]
"""Relation -> the places of two objects that stand in it."""
T = TypeVar("T")


def radii(canvas: Pixels) -> dict[str, int]:
    """Size word -> radius in px (half the side of the box) on a canvas of (width, height)."""
    short = min(canvas)
    small = 8 * max(1, (short + 32) // 64)
    return {"small": small, "large": small + 8 * max(1, (short + 64) // 128)}


@lru_cache(maxsize=256)
def mask(shape: str, radius: int, pose: Pose = ()) -> np.ndarray:
    """The pixels of a shape in its box: bool[2r 2r], read-only. It touches all four sides of the box."""
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
    """One shape: its words, its centre in px from the left and upper edge, and what its limbs do if it has any."""

    shape: str
    colour: str
    size: str
    x: int
    y: int
    pose: Pose = ()

    def box(self, canvas: Pixels) -> tuple[slice, slice]:
        """The (rows, columns) it spans on a canvas of (width, height)."""
        radius = radii(canvas)[self.size]
        return slice(self.y - radius, self.y + radius), slice(self.x - radius, self.x + radius)


def relation(subject: Object, other: Object) -> str:
    """Where ``subject`` lies as seen from ``other``: the word for the longer of the two distances."""
    dx, dy = subject.x - other.x, subject.y - other.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def is_of_size(thing: Object, canvas: Pixels) -> bool:
    """Whether an object is as large as such a shape may be; only persons know but one size."""
    return thing.shape != PERSON or radii(canvas)[thing.size] == RADIUS


def posed(thing: Object, rng: np.random.Generator) -> Object:
    """The same object with limbs drawn at random, where it has any."""
    return replace(thing, pose=pick(rng, POSES)) if thing.shape == PERSON else thing


def clear(first: Object, second: Object, canvas: Pixels) -> bool:
    """Whether two objects may stand together: apart, and with no doubt about their relation."""
    reach = radii(canvas)[first.size] + radii(canvas)[second.size]
    dx, dy = abs(first.x - second.x), abs(first.y - second.y)
    return max(dx, dy) >= reach + GAP and abs(dx - dy) >= CLEAR


def region(thing: Object, canvas: Pixels) -> str:
    """In which ninth of the canvas the centre lies; the cuts are at 42% and 58%."""
    column, row = (
        int(at > 0.42 * side) + int(at > 0.58 * side) for at, side in zip((thing.x, thing.y), canvas, strict=True)
    )
    return REGIONS[row][column]


@dataclass(frozen=True)
class Scene:
    """A picture's truth: canvas in px, background word, objects that do not touch."""

    width: int
    height: int
    background: str
    objects: tuple[Object, ...]

    @property
    def canvas(self) -> Pixels:
        return self.width, self.height

    def render(self) -> np.ndarray:
        """The picture, u8[Y X 3]."""
        radius = radii(self.canvas)
        pixels = _blank(self.canvas, self.background).copy()
        for thing in self.objects:
            stamp = _stamp(thing.shape, thing.pose, thing.colour, self.background, radius[thing.size])
            pixels[thing.box(self.canvas)] = stamp
        return pixels


@lru_cache(maxsize=256)
def _blank(canvas: Pixels, background: str) -> np.ndarray:
    return np.full((canvas[1], canvas[0], 3), BACKGROUNDS[background], np.uint8)


@lru_cache(maxsize=1024)
def _stamp(shape: str, pose: Pose, colour: str, background: str, radius: int) -> np.ndarray:
    """A shape in its box, u8[2r 2r 3]: boxes never overlap, so a scene is drawn by copying whole stamps."""
    pixels = np.where(mask(shape, radius, pose)[..., None], COLOURS[colour], BACKGROUNDS[background])
    return pixels.astype(np.uint8)


@dataclass(frozen=True)
class World:
    """What scenes may hold. The default is the mini world.

    ``snap`` is the grid of the centres in px; ``single_share`` the share of scenes with one object, the others have two.
    ``held_out`` lists (colour, shape, relation) of a subject that no training scene shows, read from either object.
    Persons are of one size in px and come in all poses.
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
        if not 1 <= self.snap <= COARSEST:
            raise InputError(f"world.snap={self.snap} px; choose 1 to {COARSEST}")
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
        Raises ValueError when the canvas is too small, or has no room for any held-out triple.
        """
        canvas = int(size[0]), int(size[1])
        if min(canvas) < SHORTEST:
            raise InputError(f"a canvas of {canvas[0]}x{canvas[1]} px; each side must be at least {SHORTEST}")
        if PERSON in self.shapes and RADIUS not in radii(canvas).values():
            raise InputError(f"no size of a {canvas[0]}x{canvas[1]} px canvas is that of persons; choose a smaller one")
        rng = np.random.default_rng((seed, index, *canvas, int(held_out)))
        background = pick(rng, self.backgrounds)
        pairs = _pairs(canvas, self.snap)
        if held_out:
            objects = self._held_out_pair(rng, pairs, canvas)
        elif pairs and rng.random() >= self.single_share:
            objects = self._pair(rng, pairs, canvas)
        else:
            objects = self._single(rng, canvas)
        return Scene(*canvas, background, tuple(posed(thing, rng) for thing in objects))

    def is_held_out(self, subject: Object, other: Object) -> bool:
        """Whether the pair shows a held-out triple, read from either object."""
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

    def _pair(self, rng: np.random.Generator, pairs: Pairs, canvas: Pixels) -> tuple[Object, ...]:
        while True:
            word = pick(rng, tuple(pairs))
            objects = self._placed(rng, pairs[word], pick(rng, self.colours), pick(rng, self.shapes))
            if not self.is_held_out(*objects) and all(is_of_size(thing, canvas) for thing in objects):
                return objects

    def _held_out_pair(self, rng: np.random.Generator, pairs: Pairs, canvas: Pixels) -> tuple[Object, ...]:
        triples = tuple(triple for triple in self.held_out if triple[2] in pairs)
        if not triples:
            raise InputError(f"a canvas of {canvas[0]}x{canvas[1]} px has no room for any triple of {self.held_out}")
        while True:
            colour, shape, word = pick(rng, triples)
            objects = self._placed(rng, pairs[word], colour, shape)
            if all(is_of_size(thing, canvas) for thing in objects):
                return objects

    def _placed(
        self, rng: np.random.Generator, places: tuple[Places, ...], colour: str, shape: str
    ) -> tuple[Object, ...]:
        """A subject of this colour and shape, and another object of any kind."""
        first, second, centres = pick(rng, places)
        ax, ay, bx, by = pick(rng, centres).tolist()
        other = Object(pick(rng, self.shapes), pick(rng, self.colours), second, bx, by)
        return Object(shape, colour, first, ax, ay), other

    def centres(self, size: str, canvas: Pixels) -> list[Pixels]:
        """Where (x, y) the centre of an object of ``size`` may lie on a canvas."""
        xs, ys = (_centres(side, radii(canvas)[size], self.snap) for side in canvas)
        return [(x, y) for y in ys for x in xs]


MINI = World()
FULL = World(colours=tuple(COLOURS), backgrounds=tuple(BACKGROUNDS))
OMNI = World(shapes=ALL_SHAPES)
"""The mini world and persons in it."""


@lru_cache(maxsize=256)
def _pairs(canvas: Pixels, snap: int) -> Pairs:
    """Every way to lay two objects on a canvas, clear of each other and unambiguous; empty where two do not fit."""
    found: dict[str, list[Places]] = {}
    for first in SIZES:
        for second in SIZES:
            for word, centres in _pair_centres(canvas, radii(canvas)[first], radii(canvas)[second], snap).items():
                found.setdefault(word, []).append((first, second, centres))
    return {word: tuple(places) for word, places in found.items()}


def _pair_centres(canvas: Pixels, first: int, second: int, snap: int) -> dict[str, np.ndarray]:
    """Relation -> the centres i32[n 4] where objects of two radii may stand so, for each relation that fits."""
    spans = [_centres(side, radius, snap) for radius in (first, second) for side in canvas]
    centres = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 4)
    dx, dy = (centres[:, :2] - centres[:, 2:]).T
    apart = np.maximum(abs(dx), abs(dy)) >= first + second + GAP
    across, clear = abs(dx) > abs(dy), apart & (abs(abs(dx) - abs(dy)) >= CLEAR)
    which = {
        "left of": clear & across & (dx < 0),
        "right of": clear & across & (dx > 0),
        "above": clear & ~across & (dy < 0),
        "below": clear & ~across & (dy > 0),
    }
    return {word: centres[keep].astype(np.int32) for word, keep in which.items() if keep.any()}


def _centres(side: int, radius: int, snap: int) -> range:
    """Where on an axis of ``side`` px the centre of an object may lie."""
    return range(-(-radius // snap) * snap, side - radius + 1, snap)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each as likely."""
    return options[int(rng.integers(len(options)))]

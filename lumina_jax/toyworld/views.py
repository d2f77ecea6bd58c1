"""The other pictures of a scene: classes, depth, surface normals, pose skeletons, and one object in its box.

All of them change the background within the boxes of objects only, in the same way on every canvas, so their distinct patches
are few as well.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from lumina_jax.pictures import annotations, dense_maps
from lumina_jax.toyworld.figures import BONES, PERSON, joints_at
from lumina_jax.toyworld.scenes import ALL_SHAPES, REGIONS, Object, Scene, mask, radii, region

CLASSES = ("background", *ALL_SHAPES)
CLASS_COLOURS = np.array([(60, 50, 90), (255, 127, 80), (64, 224, 208), (190, 255, 100), (255, 105, 180)], np.uint8)
"""None of them is a colour of the scenes, so that a class map cannot be mistaken for a picture."""

NEAR, FAR = 1.0, 8.0
WALL = FAR
DISTANCES = (4.0, 2.0, 1.0)
"""Metres to the wall, and to objects whose centres lie in the upper, middle and lower REGIONS: lower ones are nearer."""

FLOOR = (0.0, 1.0, 0.0)
"""The normal of the ground."""
SLOPE, EDGE = 0.6, 0.95
"""The horizontal component of the normals of a triangle's two sides, and of a person's at the sides of its box."""

DOT, LINE = 0.17, 0.1
"""Radius of a joint's dot and half the thickness of a bone, in radii."""
FRAME, SLIM_FRAME, SLIM = 2, 1, 8
"""Thickness in px of a box's frame; that of a frame around an object of radius SLIM or less, which FRAME would hide."""


def classes(scene: Scene) -> np.ndarray:
    """The class of every pixel as an index into CLASSES, i32[Y X]."""
    numbers = np.zeros((scene.height, scene.width), np.int32)
    for thing, box, inside in _silhouettes(scene):
        numbers[box][inside] = CLASSES.index(thing.shape)
    return numbers


def depth(scene: Scene) -> np.ndarray:
    """The distance of every pixel in metres, f32[Y X]."""
    metres = np.full((scene.height, scene.width), WALL, np.float32)
    for thing, box, inside in _silhouettes(scene):
        metres[box][inside] = distance(thing, scene)
    return metres


def distance(thing: Object, scene: Scene) -> float:
    """The distance of an object in metres."""
    word = region(thing, scene.canvas)
    return next(metres for row, metres in zip(REGIONS, DISTANCES, strict=True) if word in row)


def normals(scene: Scene) -> np.ndarray:
    """Unit surface normals f32[Y X 3]: circles are balls, squares flat, triangles roofs, and persons columns."""
    vectors = np.broadcast_to(np.float32(FLOOR), (scene.height, scene.width, 3)).copy()
    for thing, box, inside in _silhouettes(scene):
        vectors[box][inside] = _relief(thing.shape, radii(scene.canvas)[thing.size])[inside]
    return vectors


def people(scene: Scene) -> list[tuple[Object, np.ndarray]]:
    """Every person with its joints, f64[J 2] in px."""
    persons = [thing for thing in scene.objects if thing.shape == PERSON]
    sizes = radii(scene.canvas)
    return [(thing, joints_at(thing.x, thing.y, sizes[thing.size], thing.pose)) for thing in persons]


def bounds(thing: Object, scene: Scene) -> annotations.Box:
    """The box of an object in px."""
    rows, columns = thing.box(scene.canvas)
    return columns.start, rows.start, columns.stop, rows.stop


def boxed(scene: Scene, thing: Object) -> np.ndarray:
    """The picture of a scene with a frame along the box of one object, u8[Y X 3]."""
    return annotations.draw_box(scene.render(), bounds(thing, scene), thickness(thing, scene))


def thickness(thing: Object, scene: Scene) -> int:
    """The thickness in px of the frame around an object."""
    return SLIM_FRAME if radii(scene.canvas)[thing.size] <= SLIM else FRAME


def _skeletons(scene: Scene) -> np.ndarray:
    persons = people(scene)
    sizes = [radii(scene.canvas)[thing.size] for thing, _ in persons]
    dots, lines = ([share * radius for radius in sizes] for share in (DOT, LINE))
    return annotations.draw_skeletons(scene.canvas, [joints for _, joints in persons], BONES, dots, lines)


VIEWS: dict[str, Callable[[Scene], np.ndarray]] = {
    "segmentation": lambda scene: dense_maps.encode_classes(classes(scene), CLASS_COLOURS),
    "depth": lambda scene: dense_maps.encode_depth(depth(scene), NEAR, FAR),
    "normal": lambda scene: dense_maps.encode_normals(normals(scene)),
    "pose": _skeletons,
}
"""Name of a view -> function that draws it for a scene, u8[Y X 3]."""


def _silhouettes(scene: Scene) -> Iterator[tuple[Object, tuple[slice, slice], np.ndarray]]:
    """Every object with the (rows, columns) of its box and its pixels in the box, bool[2r 2r]."""
    for thing in scene.objects:
        yield thing, thing.box(scene.canvas), mask(thing.shape, radii(scene.canvas)[thing.size], thing.pose)


@lru_cache(maxsize=64)
def _relief(shape: str, radius: int) -> np.ndarray:
    """The normals of a shape on all pixels of its box, f32[2r 2r 3]."""
    steps = (np.arange(2 * radius) + 0.5 - radius) / radius
    right, up = np.meshgrid(steps, -steps)
    planar = {
        "circle": [right, up],
        "square": [0 * right, 0 * up],
        "triangle": [SLOPE * np.sign(right), 0 * up],
        PERSON: [EDGE * right, 0 * up],
    }[shape]
    towards = np.sqrt(np.maximum(0, 1 - np.square(planar).sum(axis=0)))
    return np.stack([*planar, towards], axis=-1).astype(np.float32)

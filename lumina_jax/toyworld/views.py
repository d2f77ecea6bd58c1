"""The other pictures of a scene: classes, depth, surface normals, skeletons, and one object in its box.

All of them are drawn within the boxes of the objects, and alike on every canvas. So their patches are few as well.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from lumina_jax.pictures import annotations, dense_maps
from lumina_jax.toyworld.figures import BONES, PERSON, joints_at
from lumina_jax.toyworld.scenes import ALL_SHAPES, REGIONS, Object, Scene, mask, radii, region

CLASSES = ("background", *ALL_SHAPES)
CLASS_COLOURS = np.array(
    [(60, 50, 90), (255, 127, 80), (64, 224, 208), (190, 255, 100), (255, 105, 180)],
    np.uint8,
)
"""None of them is a colour of the scenes, so that nobody takes a map for a picture."""

NEAR, FAR = 1.0, 8.0
WALL = FAR
DISTANCES = (4.0, 2.0, 1.0)
"""Metres to the wall, and to objects whose centres lie in the upper, middle and lower REGIONS: what stands lower is nearer."""

FLOOR, FACING = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
SLOPE = 0.6
"""The normals of the ground and of squares, and how far those of the two sides of a triangle lean outwards."""
EDGE = 0.95
"""How far a person's normals lean outwards at the sides of its box."""

DOT, LINE = 0.17, 0.1
"""Radius of a joint's dot and half the thickness of a bone, in radii."""
FRAME, SLIM_FRAME, SLIM = 2, 1, 8
"""Thickness in px of the frame of a box; of one that would hide its object; the largest radius of such an object."""


def classes(scene: Scene) -> np.ndarray:
    """The number in CLASSES of every pixel, i32[Y X]."""
    drawn = np.zeros((scene.height, scene.width), np.int32)
    for thing, place, inside in _silhouettes(scene):
        drawn[place][inside] = CLASSES.index(thing.shape)
    return drawn


def depth(scene: Scene) -> np.ndarray:
    """The distance of every pixel in metres, f32[Y X]."""
    metres = np.full((scene.height, scene.width), WALL, np.float32)
    for thing, place, inside in _silhouettes(scene):
        metres[place][inside] = distance(thing, scene)
    return metres


def distance(thing: Object, scene: Scene) -> float:
    """How far an object is, in metres."""
    word = region(thing, scene.canvas)
    return next(metres for row, metres in zip(REGIONS, DISTANCES, strict=True) if word in row)


def normals(scene: Scene) -> np.ndarray:
    """Where the surface of every pixel faces, f32[Y X 3]: circles are balls, triangles roofs, persons round like columns."""
    facing = np.broadcast_to(np.float32(FLOOR), (scene.height, scene.width, 3)).copy()
    for thing, place, inside in _silhouettes(scene):
        facing[place][inside] = _relief(thing.shape, radii(scene.canvas)[thing.size])[inside]
    return facing


def people(scene: Scene) -> list[tuple[Object, np.ndarray]]:
    """Every person and where its joints are, f64[J 2] in px."""
    persons = [thing for thing in scene.objects if thing.shape == PERSON]
    size = radii(scene.canvas)
    return [(thing, joints_at(thing.x, thing.y, size[thing.size], thing.pose)) for thing in persons]


def bounds(thing: Object, scene: Scene) -> annotations.Box:
    """The box of an object in px."""
    rows, columns = thing.box(scene.canvas)
    return columns.start, rows.start, columns.stop, rows.stop


def boxed(scene: Scene, thing: Object) -> np.ndarray:
    """The picture of a scene with a frame in the box of one object, u8[Y X 3]."""
    return annotations.draw_box(scene.render(), bounds(thing, scene), thickness(thing, scene))


def thickness(thing: Object, scene: Scene) -> int:
    """Of the frame around an object, in px."""
    return SLIM_FRAME if radii(scene.canvas)[thing.size] <= SLIM else FRAME


def _skeletons(scene: Scene) -> np.ndarray:
    found = people(scene)
    size = [radii(scene.canvas)[thing.size] for thing, _ in found]
    dots, lines = ([share * radius for radius in size] for share in (DOT, LINE))
    return annotations.draw_skeletons(scene.canvas, [joints for _, joints in found], BONES, dots, lines)


VIEWS: dict[str, Callable[[Scene], np.ndarray]] = {
    "segmentation": lambda scene: dense_maps.encode_classes(classes(scene), CLASS_COLOURS),
    "depth": lambda scene: dense_maps.encode_depth(depth(scene), NEAR, FAR),
    "normal": lambda scene: dense_maps.encode_normals(normals(scene)),
    "pose": _skeletons,
}
"""What shows a scene otherwise: name -> a picture u8[Y X 3] of it."""


def _silhouettes(scene: Scene):
    """Every object with its (rows, columns) and its pixels there."""
    for thing in scene.objects:
        yield thing, thing.box(scene.canvas), mask(thing.shape, radii(scene.canvas)[thing.size], thing.pose)


@lru_cache(maxsize=64)
def _relief(shape: str, radius: int) -> np.ndarray:
    """The normals f32[2r 2r 3] of a shape, in the whole of its box."""
    steps = (np.arange(2 * radius) + 0.5 - radius) / radius
    right, up = np.meshgrid(steps, -steps)
    if shape == "circle":
        outwards = [right, up]
    elif shape == "square":
        outwards = [FACING[0] * right, FACING[1] * up]
    elif shape == "triangle":
        outwards = [SLOPE * np.sign(right), 0 * up]
    else:
        outwards = [EDGE * right, 0 * up]
    towards = np.sqrt(np.maximum(0, 1 - np.square(outwards).sum(axis=0)))
    return np.stack([*outwards, towards], axis=-1).astype(np.float32)

"""Stick figures: persons whose limbs are raised or lowered, and the positions of their joints.

A person is drawn in the square box of an object, ``radius`` px around its centre. Each limb stays in its own quarter of the
box, so the distinct patches of all poses are as few as those of the single limbs.
"""

from functools import lru_cache
from itertools import product

import numpy as np

from lumina_jax.pictures.annotations import stroke

PERSON = "person"

RADIUS = 16
"""Persons are 32 px tall on every canvas: smaller limbs would be invisible, and every further size adds patches."""

Pose = tuple[bool, ...]
"""Whether each of LIMBS is raised; empty for shapes without limbs."""

LIMBS = ("left arm", "right arm", "left leg", "right leg")
"""Left and right as seen in the picture, not by the person."""

POSES: tuple[Pose, ...] = tuple(product((False, True), repeat=len(LIMBS)))

JOINTS = ("head", "neck", "hip", "left hand", "right hand", "left foot", "right foot")

BONES = ((0, 1), (1, 2), (1, 3), (1, 4), (2, 5), (2, 6))
"""Pairs of JOINTS."""

HEAD, NECK, HIP = (0.0, -0.67), (0.0, -0.28), (0.0, 0.2)
HANDS = {False: (0.85, -0.17), True: (0.85, -0.82)}
FEET = {False: (0.26, 0.84), True: (0.84, 0.82)}
"""Joint positions (right, down) from the centre, in radii. Those of hands and feet are keyed by "raised", for the right side."""

HEAD_RADIUS, LIMB, TORSO = 0.33, 0.17, 0.22
"""Radius of the head and half the thickness of limbs and torso, in radii."""


def joints(pose: Pose) -> np.ndarray:
    """The positions of JOINTS, f64[J 2]: (right, down) from the centre, in radii."""
    left_arm, right_arm, left_leg, right_leg = pose
    limbs = (HANDS[left_arm], HANDS[right_arm], FEET[left_leg], FEET[right_leg])
    sides = np.array([(-1, 1), (1, 1), (-1, 1), (1, 1)])
    return np.concatenate([[HEAD, NECK, HIP], sides * np.array(limbs)])


def joints_at(x: int, y: int, radius: int, pose: Pose) -> np.ndarray:
    """The positions of JOINTS in a picture, f64[J 2] in px, of a person centred at (x, y)."""
    return np.array([x, y]) + radius * joints(pose)


@lru_cache(maxsize=256)
def person(radius: int, pose: Pose) -> np.ndarray:
    """The pixels of a person in its box: bool[2r 2r], read-only."""
    body = np.zeros((2 * radius, 2 * radius), bool)
    points = joints_at(radius, radius, radius, pose)
    for first, second, width in ((0, 0, HEAD_RADIUS), *((a, b, TORSO if b == 2 else LIMB) for a, b in BONES)):
        inside, window = stroke(body.shape, points[first], points[second], width * radius)
        body[window] |= inside
    body.flags.writeable = False
    return body

"""Figures: persons with limbs that are raised or not, and where their joints are.

Everything is drawn in the square box of an object, radius r px around its centre, and each limb stays in its own quarter of
that box. So the patches of all poses are as few as those of one limb at a time.
"""

from functools import lru_cache
from itertools import product

import numpy as np

from lumina_jax.pictures.annotations import stroke

PERSON = "person"

RADIUS = 16
"""Persons are 32 px tall on every canvas: limbs of smaller ones could not be seen, and each size has patches of its own."""

Pose = tuple[bool, ...]
"""For each of LIMBS whether it is raised; empty for what has no limbs."""

LIMBS = ("left arm", "right arm", "left leg", "right leg")
"""As they lie in the picture, not as the person would call them."""

POSES: tuple[Pose, ...] = tuple(product((False, True), repeat=len(LIMBS)))

JOINTS = ("head", "neck", "hip", "left hand", "right hand", "left foot", "right foot")

BONES = ((0, 1), (1, 2), (1, 3), (1, 4), (2, 5), (2, 6))
"""Pairs of JOINTS."""

HEAD, NECK, HIP = (0.0, -0.67), (0.0, -0.28), (0.0, 0.2)
HANDS = {False: (0.85, -0.17), True: (0.85, -0.82)}
FEET = {False: (0.26, 0.84), True: (0.84, 0.82)}
"""The places of joints in radii from the centre, right and down; those of limbs on the right side, lowered and raised."""

HEAD_RADIUS, LIMB, TORSO = 0.33, 0.17, 0.22
"""Half the thickness of the parts of the body, in radii."""


def joints(pose: Pose) -> np.ndarray:
    """Where each of JOINTS is: f64[J 2] as (right, down) from the centre, in radii."""
    left_arm, right_arm, left_leg, right_leg = pose
    limbs = (HANDS[left_arm], HANDS[right_arm], FEET[left_leg], FEET[right_leg])
    sides = np.array([(-1, 1), (1, 1), (-1, 1), (1, 1)])
    return np.concatenate([[HEAD, NECK, HIP], sides * np.array(limbs)])


def joints_at(x: int, y: int, radius: int, pose: Pose) -> np.ndarray:
    """Where each of JOINTS is in a picture, f64[J 2] in px, for a person centred at (x, y)."""
    return np.array([x, y]) + radius * joints(pose)


@lru_cache(maxsize=256)
def person(radius: int, pose: Pose) -> np.ndarray:
    """The pixels of a person in its box: bool[2r 2r], read-only."""
    body = np.zeros((2 * radius, 2 * radius), bool)
    places = joints_at(radius, radius, radius, pose)
    for first, second, thick in ((0, 0, HEAD_RADIUS), *((a, b, TORSO if b == 2 else LIMB) for a, b in BONES)):
        inside, place = stroke(body.shape, places[first], places[second], thick * radius)
        body[place] |= inside
    body.flags.writeable = False
    return body

"""Cost of the kernels of model/rotation.py (QK-norm and rotary positions), by bundles of instructions and by HBM bytes.

Their time is that of a loop over some tokens of some heads, which tests/bench/kernel_bundles.py reads off the schedule, or that of
the memory they move, whichever is longer: the blocks of the next grid step move during the loop.
"""

import re

from lumina_jax.model.rotation import HEADS, ROWS
from lumina_jax.pods.chips import Chip
from lumina_jax.pods.hlo import Instruction

HEAD_DIM = 128
ROTATION_BUNDLES = {
    "v5e": {"norm_rotate": 1258, "norm_rotate_bwd": 2321},
    "v5p": {"norm_rotate": 1263, "norm_rotate_bwd": 2283},
    "v6e": {"norm_rotate": 1000, "norm_rotate_bwd": 1751},
    "tpu7x": {"norm_rotate": 876, "norm_rotate_bwd": 1766},
}
"""Chip -> kernel -> bundles of one trip of its loop: ROWS tokens of HEADS heads of HEAD_DIM. Of libtpu 0.0.48.1."""

SAME_UNITS = {"v4": "v5p"}
"""A chip without measurements -> the one whose cores have the same units."""


def rotation_seconds(call: Instruction, chip: Chip) -> float | None:
    """Seconds of the loops of a rotation kernel, its memory traffic left out; None when a custom call runs another kernel."""
    match = re.search(r"norm_rotate(_bwd)?", call.name)
    if not match:
        return None
    trips = call.arrays[0].elements / (ROWS * HEADS * HEAD_DIM)
    return trips * ROTATION_BUNDLES[SAME_UNITS.get(chip.name, chip.name)][match[0]] / chip.cores / chip.clock

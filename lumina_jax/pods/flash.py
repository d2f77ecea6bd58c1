"""Cost of the kernels of model/flash.py, by the bundles of instructions of their blocks (tests/bench/kernel_search.py).

A grid step is a head: what all of them share once, each block of scores on the diagonal, and each under it. Blocks that would be
skipped because they share no segment are priced too: a program does not know its data.
"""

import math
import re
from dataclasses import dataclass

from lumina_jax.pods.chips import Chip
from lumina_jax.pods.hlo import Instruction, arrays

HEAD_DIM = 128
PRODUCTS = {"fwd": 2, "bwd": 5}
"""Pass -> matrix products (queries x keys x head size) of a block."""

FLASH_BUNDLES = {
    "v5e": {
        "fwd": {512: (1085, 1266, 79), 640: (1535, 1656, 84)},
        "bwd": {512: (2206, 2188, 391), 640: (3548, 2953, 453)},
    },
    "v5p": {
        "fwd": {512: (1042, 1256, 218), 640: (1644, 1652, 225), 768: (2364, 2062, 119)},
        "bwd": {512: (2207, 2160, 562), 640: (3558, 2986, 623), 768: (5305, 3923, 560)},
    },
    "v6e": {
        "fwd": {512: (734, 919, 116), 640: (1061, 1221, 244), 768: (1395, 1464, 119), 1280: (3673, 2901, 119)},
        "bwd": {512: (1488, 1790, 263), 640: (2103, 2268, 885), 768: (3010, 2857, 325), 1280: (8325, 6014, 453)},
    },
    "tpu7x": {
        "fwd": {640: (1003, 1223, 91), 1280: (3807, 2912, 92)},
        "bwd": {640: (2100, 2177, 286), 1280: (8328, 5875, 447)},
    },
}
"""Chip -> pass -> edge of a block -> bundles of a block under the diagonal, of one on it, and of the rest of a head.

Of libtpu 0.0.48.1, in strips of 128 on v5e and v5p and of 256 on the others. Those of 640 on v6e were read with heads side by side,
the others with heads apart, which took 125 (forward) and 590 (backward) bundles fewer for the rest of a head there."""

SAME_UNITS = {"v4": "v5p"}
"""A chip without measurements -> the one whose cores have the same units."""


@dataclass(frozen=True)
class FlashKernel:
    """One call: ``heads`` (of all rows) of ``length`` tokens, in square blocks of ``block``."""

    pass_: str
    block: int
    length: int
    head_dim: int
    heads: int

    def bundles(self, chip: Chip) -> float:
        """Bundles of a head. A block that was not measured costs as many for a score as the measured one nearest in size.

        No block takes less time than its products at the peak of the matrix units, which the compiler may count as faster.
        """
        table = FLASH_BUNDLES[SAME_UNITS.get(chip.name, chip.name)][self.pass_]
        nearest = min(table, key=lambda block: abs(math.log(block / self.block)))
        scale = (self.block / nearest) ** 2 * self.head_dim / HEAD_DIM
        under, on, rest = table[nearest]
        peak = chip.flops / chip.clock / chip.cores
        ideal = PRODUCTS[self.pass_] * 2 * self.block**2 * self.head_dim / peak
        n = self.length // self.block
        return rest + n * max(on * scale, ideal / 2) + n * (n - 1) / 2 * max(under * scale, ideal)

    def seconds(self, chip: Chip) -> float:
        return self.bundles(chip) * self.heads / chip.cores / chip.clock


def flash_kernel(call: Instruction) -> FlashKernel | None:
    """The flash kernel that a custom call runs, or None when it runs another one. Its name has pass, block and strip."""
    match = re.search(r"flash_(fwd|bwd)_(\d+)_\d+", call.name)
    if not match:
        return None
    # Of operands and results, the queries [B T HK] are the first numbers of three axes, the normalisers [B H 1 T] those of four.
    layouts = call.text.partition("operand_layout_constraints={")[2].partition("}}, ")[0]
    shapes = [array.dims for array in (*arrays(layouts), *call.arrays) if array.dtype in ("bf16", "f32")]
    columns = next(dims for dims in shapes if len(dims) == 3)[2]
    rows, heads, _, length = next(dims for dims in shapes if len(dims) == 4)
    return FlashKernel(match[1], int(match[2]), length, columns // heads, rows * heads)

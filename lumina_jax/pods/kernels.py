"""Cost of Pallas kernels: the compiled program carries no estimate of them, so measured instruction counts price them.

A TPU core issues one bundle of instructions per cycle. ``BUNDLES`` holds how many bundles the compiler emitted for one grid step
of splash attention, one block of queries against one block of keys (head size 128, causal; read off the schedule that
--xla_jf_dump_llo_text dumps). Blocks that the causal mask skips cost nothing.
"""

import json
import math
import re
from dataclasses import dataclass

from lumina_jax.pods.chips import Chip
from lumina_jax.pods.flash import flash_kernel
from lumina_jax.pods.hlo import Computation, Instruction, arrays
from lumina_jax.pods.rotation import rotation_seconds

TARGET = "tpu_custom_call"
HEAD_DIM = 128
MATMULS = {"fwd": 2, "fused": 5, "dkv": 4, "dq": 3}
"""Pass -> matrix products (query block x key block x head size) per grid step; "fused" computes dkv and dq in one kernel."""

LIBTPU = "0.0.48.1"
"""The compiler that BUNDLES are read off, by tests/bench/kernel_bundles.py; "dkv" and "dq" of v5e and v5p are of 0.0.42.1."""

BUNDLES = {
    "v5e": {
        "fwd": {512: 2204, 640: 3096, 768: 4106},
        "fused": {512: 3041, 640: 4562, 768: 6499},
        "dkv": {640: 3555},
        "dq": {640: 2727},
    },
    "v5p": {
        "fwd": {512: 2410, 640: 3364, 768: 4344},
        "fused": {512: 3200, 640: 4596, 768: 6488},
        "dkv": {640: 3701},
        "dq": {640: 2878},
    },
    "v6e": {
        "fwd": {512: 1706, 640: 2507, 768: 3344, 1280: 7048},
        "fused": {512: 2134, 640: 3159, 768: 4132, 1280: 10330},
        "dkv": {640: 2699},
        "dq": {640: 2247},
    },
    "tpu7x": {"fwd": {512: 1740, 640: 2810}, "fused": {512: 2239, 640: 3239}, "dkv": {640: 2670}, "dq": {640: 2343}},
}
"""Chip -> pass -> edge of a square block -> bundles per grid step, with segment ids."""

SAME_CORE = {"v4": "v5p"}
"""A chip without measurements -> the one whose cores have the same units."""


@dataclass(frozen=True)
class SplashKernel:
    """One call of splash attention: ``steps`` (causal blocks x heads x rows), each of ``block_q`` x ``block_kv``."""

    pass_: str
    block_q: int
    block_kv: int
    head_dim: int
    steps: int

    def bundles(self, chip: Chip) -> float:
        """Bundles per grid step. For what was not measured, the share of the matrix units' peak is taken from what was: for a
        block size from its neighbours, for the dkv or dq kernel from the fused one.
        """
        table = BUNDLES[SAME_CORE.get(chip.name, chip.name)]
        measured = self.pass_ if self.pass_ in table else "fused"
        shares = {
            size: mxu_cycles(measured, size, size, HEAD_DIM, chip) / bundles
            for size, bundles in table[measured].items()
        }
        edge = math.sqrt(self.block_q * self.block_kv)
        ideal = mxu_cycles(self.pass_, self.block_q, self.block_kv, self.head_dim, chip)
        return ideal / _interpolate(shares, edge)

    def seconds(self, chip: Chip) -> float:
        return self.bundles(chip) * self.steps / chip.cores / chip.clock


def mxu_cycles(pass_: str, block_q: int, block_kv: int, head_dim: int, chip: Chip) -> float:
    """Cycles of a grid step in which the matrix units of one core run at their peak: a lower bound on its bundles."""
    return MATMULS[pass_] * 2 * block_q * block_kv * head_dim / (chip.flops / chip.clock / chip.cores)


def _interpolate(table: dict[int, float], size: float) -> float:
    """Linear between the neighbours of ``size``, constant beyond the ends."""
    size = min(max(size, min(table)), max(table))
    low, high = max(known for known in table if known <= size), min(known for known in table if known >= size)
    return table[low] + (table[high] - table[low]) * (size - low) / max(high - low, 1)


def splash_kernel(call: Instruction) -> SplashKernel | None:
    """The splash kernel that a custom call runs, or None when it runs another one."""
    match = re.search(r"splash_m[hq]a_(fwd|dkv|dq)", call.name)
    if not match:
        return None
    # The kernel writes its block sizes into the call's metadata, as JSON in JSON.
    metadata = re.search(r'"xprof_metadata":"(\{.*?\})"', call.text)
    if not metadata:
        raise ValueError(f"the call {call.name} has no block sizes in its metadata; this jax has another splash kernel")
    sizes = json.loads(metadata[1].replace('\\"', '"'))
    pass_ = match[1]
    suffix = "" if pass_ == "fwd" else f"_{pass_}"
    block_q, block_kv = sizes[f"block_q{suffix}"], sizes[f"block_kv{suffix}"]
    # The queries [B H T K] are the first operand that is neither a mask nor a scalar.
    layouts = call.text.partition("operand_layout_constraints={")[2].partition("}}, ")[0]
    shapes = [array.dims for array in arrays(layouts) if array.dtype in ("bf16", "f32")]
    *rows, length, head_dim = next(dims for dims in shapes if len(dims) >= 3)
    queries, keys = -(-length // block_q), -(-length // block_kv)
    # The mask keeps a block whose first key is not behind its last query.
    blocks = sum(min(keys, (q * block_q + block_q - 1) // block_kv + 1) for q in range(queries))
    # A fused backward kernel returns dq too, per block of keys, with one axis more than the queries.
    if pass_ == "dkv" and any(len(array.dims) == len(rows) + 3 for array in call.arrays):
        pass_ = "fused"
    return SplashKernel(pass_, block_q, block_kv, head_dim, blocks * math.prod(rows))


def kernel_seconds(call: Instruction, computation: Computation, chip: Chip) -> float:
    """Seconds of one execution of a Pallas call on one device; others than attention and rotation are priced by their HBM bytes."""
    if kernel := flash_kernel(call) or splash_kernel(call):
        return kernel.seconds(chip)
    loops = rotation_seconds(call, chip) or 0.0
    moved = (
        sum(computation.hbm_bytes(name) / _layers(call, computation, name) for name in call.operands) + call.hbm_bytes
    )
    return max(loops, moved / chip.bandwidth)


def _layers(call: Instruction, computation: Computation, operand: str) -> int:
    """Of an operand that holds something of every layer, of which a call reads one, how many; else 1.

    That is attention to a cache: keys and values [L B N S K], with scales [L B N S] where they are int8 behind each.
    """
    if not call.name.startswith("cached_attention") or operand not in computation:
        return 1
    caches = [
        array.dims
        for name in call.operands
        if name in computation
        for array in computation[name].arrays
        if len(array.dims) == 5
    ]
    dims = computation[operand].arrays[0].dims
    return dims[0] if dims in caches or any(dims == cache[:4] for cache in caches) else 1

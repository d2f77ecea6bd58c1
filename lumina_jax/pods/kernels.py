"""What a Pallas kernel costs: the compiled program says nothing about it, so it is priced by measured instruction counts.

A TPU core issues one bundle of instructions per cycle. ``BUNDLES`` holds how many bundles the compiler wrote for one grid step
of splash attention, one block of queries against one block of keys (head size 128, causal, read off its dumps of the schedule
with --xla_jf_dump_llo_text). Skipped blocks cost nothing.
"""

import json
import math
import re
from dataclasses import dataclass

from lumina_jax.errors import InputError
from lumina_jax.pods.chips import Chip
from lumina_jax.pods.hlo import Computation, Instruction, arrays

TARGET = "tpu_custom_call"
HEAD = 128
PRODUCTS = {"fwd": 2, "fused": 5, "dkv": 4, "dq": 3}
"""Matrix products of block x block x head per grid step; the fused backward pass makes dkv and dq in one."""

BUNDLES = {
    "v5e": {"fwd": {640: 3109}, "fused": {640: 4285}, "dkv": {640: 3555}, "dq": {640: 2727}},
    "v5p": {
        "fwd": {512: 2305, 640: 3338, 768: 4417},
        "fused": {512: 3191, 640: 4484, 768: 6257},
        "dkv": {640: 3701},
        "dq": {640: 2878},
    },
    "v6e": {
        "fwd": {256: 1028, 640: 2327, 768: 2976, 1280: 6585},
        "fused": {256: 1085, 640: 2724, 768: 3773, 1280: 9521},
    },
}
ALIKE = {"v4": "v5p"}
"""Chips without a row of their own, and the one whose cores have the same units."""


@dataclass(frozen=True)
class Kernel:
    """One splash call: ``steps`` grid steps (blocks of the causal triangle x heads x rows) of ``block_q`` x ``block_kv``."""

    pass_: str
    block_q: int
    block_kv: int
    head: int
    steps: int

    def bundles(self, chip: Chip) -> float:
        """Per grid step. What was not measured takes a share of the peak from what was: a block size that of its neighbours,
        half of a backward pass that of the fused one.
        """
        table = BUNDLES[ALIKE.get(chip.name, chip.name)]
        like = self.pass_ if self.pass_ in table else "fused"
        shares = {size: least(like, size, size, HEAD, chip) / bundles for size, bundles in table[like].items()}
        edge = math.sqrt(self.block_q * self.block_kv)
        return least(self.pass_, self.block_q, self.block_kv, self.head, chip) / _between(shares, edge)

    def seconds(self, chip: Chip) -> float:
        return self.bundles(chip) * self.steps / chip.cores / chip.clock


def least(pass_: str, block_q: int, block_kv: int, head: int, chip: Chip) -> float:
    """Cycles that the matrix units of one core need for a grid step."""
    return PRODUCTS[pass_] * 2 * block_q * block_kv * head / chip.flops_per_cycle


def _between(known: dict[int, float], at: float) -> float:
    """Linear between the neighbours of ``at``, level beyond the ends."""
    sizes = sorted(known)
    low = max((size for size in sizes if size <= at), default=sizes[0])
    high = min((size for size in sizes if size >= at), default=sizes[-1])
    if low >= high:
        return known[low if at >= low else high]
    return known[low] + (known[high] - known[low]) * (at - low) / (high - low)


def splash(call: Instruction) -> Kernel | None:
    """The splash kernel that a custom call runs, or None when it is another one."""
    found = re.search(r"splash_m[hq]a_(fwd|dkv|dq)", call.name)
    if not found:
        return None
    # The kernel writes its block sizes into the call's metadata, as JSON in JSON.
    words = re.search(r'"xprof_metadata":"(\{.*?\})"', call.text)
    if not words:
        raise InputError(f"the call {call.name} does not say its block sizes; it is not a splash kernel of this jax")
    sizes = json.loads(words[1].replace('\\"', '"'))
    pass_ = found[1]
    suffix = "" if pass_ == "fwd" else f"_{pass_}"
    block_q, block_kv = sizes[f"block_q{suffix}"], sizes[f"block_kv{suffix}"]
    *rows, length, head = _query(call)
    queries, keys = -(-length // block_q), -(-length // block_kv)
    # A block works when its first key is not behind its last query.
    blocks = sum(min(keys, (q * block_q + block_q - 1) // block_kv + 1) for q in range(queries))
    fused = pass_ == "dkv" and _outputs_dq(call)
    return Kernel("fused" if fused else pass_, block_q, block_kv, head, blocks * math.prod(rows))


def _query(call: Instruction) -> tuple[int, ...]:
    """[B H T K] of the queries: the first operand that is neither a mask nor a number."""
    layouts = call.text.partition("operand_layout_constraints={")[2].partition("}}, ")[0]
    return next(a.dims for a in arrays(layouts) if a.dtype in ("bf16", "f32") and len(a.dims) >= 3)


def _outputs_dq(call: Instruction) -> bool:
    """A fused backward pass also returns dq, one part per block of keys: an array of one axis more than the queries."""
    return any(len(array.dims) == len(_query(call)) + 1 for array in call.arrays)


def seconds(call: Instruction, computation: Computation, chip: Chip) -> float:
    """Of one execution of a Pallas call on one chip; kernels other than splash are priced by the HBM bytes they move."""
    if kernel := splash(call):
        return kernel.seconds(chip)
    moved = sum(computation.hbm_bytes(name) for name in call.operands) + call.hbm_bytes
    return moved / chip.bandwidth

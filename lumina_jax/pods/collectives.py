"""Communication between chips: the collectives of a compiled program, and the bytes that each chip sends for them."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lumina_jax.pods.hlo import Computation, Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One collective over a ring of ``group_size`` chips, each of which sends ``wire_bytes``; async ones overlap other work."""

    kind: str
    group_size: int
    wire_bytes: float
    asynchronous: bool


def is_collective(i: Instruction) -> bool:
    return i.op.removesuffix("-start") in KINDS


def find_collectives(
    program: Program, i: Instruction, computation: Computation, channels: set[str]
) -> Iterator[Collective]:
    """The collectives of an instruction in ``computation``, including those in the computations it calls.

    ``channels`` collects the channel ids that were counted: an asynchronous collective appears as start, step and end, all on
    one channel, and counts once.
    """
    if is_collective(i):
        instructions, asynchronous, scattered = [(i, computation)], i.op.endswith("-start"), False
    elif i.op in ("fusion", "async-start") and i.reference("calls"):
        instructions = _collectives_in(program, i.reference("calls"))
        asynchronous = "async" in i.name or i.op == "async-start" or "async_collective" in i.text[:200]
        scattered = "all-reduce-scatter" in i.name or "AllReduceScatterFusion" in i.text
    else:
        return
    for c, scope in instructions:
        channel = re.search(r"channel_id=(\d+)", c.text)
        if channel:
            if channel[1] in channels:
                continue
            channels.add(channel[1])
        kind, size = c.op.removesuffix("-start"), group_size(c.text)
        # An all-reduce fused with the slice of its result runs only the reduce-scatter half of its ring.
        if kind == "all-reduce" and (scattered or "AllReduceScatterFusion" in c.text):
            kind = "reduce-scatter"
        if size > 1 or kind == "collective-permute":  # else it stays on one chip
            yield Collective(kind, size, _wire_bytes(c, scope, kind, size), asynchronous)


def _collectives_in(program: Program, name: str) -> Iterator[tuple[Instruction, Computation]]:
    """The collectives in the computation ``name`` and in those it calls, each with the computation that holds it."""
    computation = program.get(name, Computation())
    for i in computation.values():
        if is_collective(i):
            yield i, computation
        for called in i.called:
            yield from _collectives_in(program, called)


def _wire_bytes(i: Instruction, computation: Computation, kind: str, size: int) -> float:
    operand_bytes = sum(computation.bytes(name) for name in i.operands)
    if kind == "collective-permute":
        return operand_bytes
    remote_share = (size - 1) / size
    if kind == "all-gather":
        # The shape of a start lists its operands before its results.
        result_bytes = i.bytes - operand_bytes if i.op.endswith("-start") else i.bytes
        return max(0, result_bytes) * remote_share
    return operand_bytes * remote_share * (2 if kind == "all-reduce" else 1)


def group_size(text: str) -> int:
    """How many chips form one replica group, in any of XLA's three notations; 1 without replica groups."""
    if explicit := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(explicit[1].split(","))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(iota[2])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{('[^}]*)\}", text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        return math.prod(sizes.get(axis, 1) for axis in re.findall(r"'([^']+)'", mesh[2]))
    return 1

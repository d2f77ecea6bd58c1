"""What chips send each other: the collectives of a compiled program, and the bytes each chip puts on the wire for them."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lumina_jax.pods.hlo import Computation, Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Sent:
    """One collective among ``group`` chips, in a ring; ``beside`` other work or waited for."""

    kind: str
    group: int
    bytes: float
    beside: bool


def is_collective(i: Instruction) -> bool:
    return i.op.removesuffix("-start") in KINDS


def collectives(program: Program, i: Instruction, computation: Computation, channels: set[str]) -> Iterator[Sent]:
    """The collectives in an instruction of ``computation``, those in what it calls included.

    ``channels`` remembers those that were seen: an asynchronous one appears as start, step and end on one channel.
    """
    if is_collective(i):
        yield from _once(i, computation, i.op.endswith("-start"), False, channels)
    elif i.op in ("fusion", "async-start") and i.refers("calls"):
        beside = "async" in i.name or i.op == "async-start" or "async_collective" in i.text[:200]
        scattered = "all-reduce-scatter" in i.name or "AllReduceScatterFusion" in i.text
        yield from _inside(program, i.refers("calls"), beside, scattered, channels)


def _inside(program: Program, name: str, beside: bool, scattered: bool, channels: set[str]) -> Iterator[Sent]:
    computation = program.get(name, Computation())
    for i in computation.values():
        if is_collective(i):
            yield from _once(i, computation, beside, scattered, channels)
        for called in i.called:
            yield from _inside(program, called, beside, scattered, channels)


def _once(
    i: Instruction, computation: Computation, beside: bool, scattered: bool, channels: set[str]
) -> Iterator[Sent]:
    channel = re.search(r"channel_id=(\d+)", i.text)
    if channel:
        if channel[1] in channels:
            return
        channels.add(channel[1])
    kind, group = i.op.removesuffix("-start"), group_size(i.text)
    # An all-reduce fused with the slice that follows keeps one half of its ring.
    if kind == "all-reduce" and (scattered or "AllReduceScatterFusion" in i.text):
        kind = "reduce-scatter"
    if group > 1 or kind == "collective-permute":
        yield Sent(kind, group, _bytes(i, computation, kind, group), beside)


def _bytes(i: Instruction, computation: Computation, kind: str, group: int) -> float:
    given = sum(computation.bytes(name) for name in i.operands)
    if kind == "collective-permute":
        return given
    others = (group - 1) / group
    if kind == "all-gather":
        made = i.bytes - given if i.op.endswith("-start") else i.bytes  # a start's shape names its operands too
        return max(0, made) * others
    return given * others * (2 if kind == "all-reduce" else 1)


def group_size(text: str) -> int:
    """How many chips take part in one group, in any of the three ways XLA writes groups; 1 when it does not say."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(counted[2])
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{('[^}]*)\}", text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", meshed[1])}
        return math.prod(sizes.get(axis, 1) for axis in re.findall(r"'([^']+)'", meshed[2]))
    return 1

"""Estimates what a compiled TPU program takes on one chip: seconds by category, bytes between chips, memory.

Each instruction counts as often as the loops around it run; the compiler's own totals count the body of a loop once. Matrix
products take the cycles that the compiler estimates for them. Everything else takes the HBM bytes it moves over the bandwidth,
since the compiler's estimates of these are 2.5 times too high. :mod:`lumina_jax.pods.kernels` prices Pallas kernels; a
collective takes its bytes over all links of a chip. Launch gaps, stragglers and the latency of collectives are left out, so a
real step takes longer.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import jax

from lumina_jax.pods import kernels
from lumina_jax.pods.chips import Chip
from lumina_jax.pods.collectives import find_collectives, is_collective
from lumina_jax.pods.hlo import Computation, Instruction, Program
from lumina_jax.pods.traffic import fusion_bytes, moved_bytes

_STARTED = ("copy-done", "all-gather-done", "all-reduce-done", "async-done", "async-update")
_NAMES = ("get-tuple-element", "tuple", "parameter", "constant", "bitcast", "iota", "after-all", "opt-barrier")
FREE = {*_NAMES, *_STARTED, "partition-id", "replica-id"}
"""Operations that move nothing, or that were counted at their start."""


@dataclass(frozen=True)
class InstructionCost:
    """The cost of one instruction, which runs ``times`` times; the other figures are those of one execution.

    ``category`` is "mxu" (matrix products), "memory", "kernels" (Pallas), "sync" and "async" (blocking and overlapped
    collectives) or "dcn" (between slices). ``bytes`` go to and from HBM, or over the wire for collectives. For matrix products,
    ``ideal`` is the seconds at the chip's peak and ``roofline`` the larger of these and the seconds of the HBM traffic.
    """

    category: str
    name: str
    times: int
    seconds: float
    bytes: float = 0.0
    ideal: float = 0.0
    roofline: float = 0.0


@dataclass(frozen=True)
class Costs:
    """The instructions of one program and their sums, in seconds of one chip."""

    instructions: tuple[InstructionCost, ...]

    def seconds(self, *categories: str) -> float:
        return sum(i.times * i.seconds for i in self.instructions if i.category in categories)

    def bytes(self, *categories: str) -> float:
        return sum(i.times * i.bytes for i in self.instructions if i.category in categories)

    def calls(self, category: str) -> dict[str, tuple[int, float]]:
        """Name -> (times, total bytes) of a category; equal names are summed."""
        sums: dict[str, tuple[int, float]] = {}
        for i in self.instructions:
            if i.category == category:
                times, size = sums.get(i.name, (0, 0.0))
                sums[i.name] = times + i.times, size + i.times * i.bytes
        return sums

    @property
    def compute(self) -> float:
        return self.seconds("mxu", "memory", "kernels")

    @property
    def exposed(self) -> float:
        """Asynchronous collectives, those between slices included, beyond what the computation can hide."""
        return max(0.0, self.seconds("async", "dcn") - self.compute)

    @property
    def serial(self) -> float:
        """Only the collectives that the compiler made asynchronous overlap with other work."""
        return self.compute + self.seconds("sync") + self.exposed

    @property
    def overlapped(self) -> float:
        """All collectives overlap with computation: a lower bound."""
        return max(self.compute, self.seconds("sync", "async"), self.seconds("dcn"))

    @property
    def efficiency(self) -> float:
        """Share of the chip's peak at which matrix products run."""
        ideal = sum(i.times * i.ideal for i in self.instructions if i.category == "mxu")
        return ideal / max(self.seconds("mxu"), 1e-12)

    @property
    def roofline(self) -> float:
        """Matrix products at their peak or at HBM speed, whichever is slower.

        The fair figure for the thin products of decoding, whose cycles the compiler estimates too high.
        """
        products = sum(i.times * i.roofline for i in self.instructions if i.category == "mxu")
        return products + self.seconds("memory", "kernels", "sync")


@dataclass(frozen=True)
class HbmUsage:
    """HBM bytes of one chip. Donated arguments, which become outputs in place, are ``aliased``: part of both others."""

    arguments: float
    outputs: float
    aliased: float
    temporaries: float

    @property
    def total(self) -> float:
        """What is allocated; the compiler refuses a program for which this exceeds the chip's capacity."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def hbm_usage(compiled: jax.stages.Compiled) -> HbmUsage:
    """What the compiler allocated."""
    m = compiled.memory_analysis()
    return HbmUsage(m.argument_size_in_bytes, m.output_size_in_bytes, m.alias_size_in_bytes, m.temp_size_in_bytes)


def program_costs(program: Program, chip: Chip, unbounded_trips: int = 1) -> Costs:
    """The costs of one run. A loop whose trip count depends on data is taken to run ``unbounded_trips`` times."""
    return Costs(tuple(_walk(program, chip, program.entry, 1, unbounded_trips)))


def iteration_costs(program: Program, chip: Chip) -> Costs:
    """The costs of one iteration, body and condition, of the loop whose trip count depends on data.

    When such loops are nested it is the outermost, and those inside count as in :func:`program_costs`. Raises ValueError when
    there is none.
    """
    loop = next(_unbounded_loops(program, program.entry), None)
    if loop is None:
        raise ValueError("no loop of the program has a trip count that depends on data; it is no decoding loop")
    walks = (_walk(program, chip, loop.reference(attribute), 1, 1) for attribute in ("body", "condition"))
    return Costs(tuple(cost for walk in walks for cost in walk))


def _unbounded_loops(program: Program, name: str) -> Iterator[Instruction]:
    """Loops whose trip count depends on data, in a computation and in those it calls; outer before inner."""
    for i in program[name].values():
        if i.op == "while" and program.trip_count(i) is None:
            yield i
        elif i.op in ("while", "call", "conditional"):
            for inner in [i.reference("body")] if i.op == "while" else _branches(i):
                yield from _unbounded_loops(program, inner)


def _walk(program: Program, chip: Chip, name: str, times: int, unbounded_trips: int) -> Iterator[InstructionCost]:
    """The costs of a computation that runs ``times`` times, including the computations it calls."""
    computation = program[name]
    channels: set[str] = set()
    for i in computation.values():
        if i.op in FREE or times == 0:
            continue
        if i.op == "while":
            trips = program.trip_count(i)
            trips = unbounded_trips if trips is None else trips
            yield from _walk(program, chip, i.reference("body"), times * trips, unbounded_trips)
        elif i.op in ("call", "conditional"):
            for inner in _branches(i):
                yield from _walk(program, chip, inner, times, unbounded_trips)
        else:
            for c in find_collectives(program, i, computation, channels):
                category, label = "async" if c.asynchronous else "sync", f"{c.kind}/{c.group_size}"
                yield InstructionCost(category, label, times, c.wire_bytes / chip.ici, c.wire_bytes)
            if cost := _cost(program, chip, i, computation, times):
                yield cost


def _branches(i: Instruction) -> list[str]:
    """The computations that a call or a conditional runs; of numbered branches the first stands for all."""
    called = re.findall(r"(?:to_apply|true_computation|false_computation)=%([\w.\-]+)", i.text)
    numbered = re.search(r"branch_computations=\{%([\w.\-]+)", i.text)
    return called + ([numbered[1]] if numbered else [])


def _cost(program: Program, chip: Chip, i: Instruction, computation: Computation, times: int) -> InstructionCost | None:
    """The cost of an instruction apart from collectives within a slice; None when there is none."""
    if is_collective(i) or (i.op == "custom-call" and kernels.TARGET not in i.text):
        return None
    if i.op == "custom-call":
        seconds = kernels.kernel_seconds(i, computation, chip)
        return InstructionCost("kernels", i.name.split(".")[0], times, seconds)
    if i.op in ("send", "recv"):
        if i.op == "recv" or "megascale" not in i.text:
            return None
        # The compiler expresses a collective between slices as a send to the host.
        sent = computation.bytes(i.operands[0])
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.text)
        name = kind[1].lower().replace("_", "-") if kind else "send"
        return InstructionCost("dcn", f"{name}/slices", times, sent / chip.dcn, sent)
    flops = program.flops(i, computation)
    if flops:
        moved = fusion_bytes(program, i, computation)
        seconds = i.cycles / chip.clock if i.cycles else flops / chip.flops
        ideal = flops / chip.flops
        return InstructionCost("mxu", i.name, times, seconds, moved, ideal, max(ideal, moved / chip.bandwidth))
    if i.op.endswith(("-start", "-done")) or re.search("async.collective", i.name):
        return None  # copies between HBM and on-chip memory that overlap other work
    moved = moved_bytes(program, i, computation)
    return InstructionCost("memory", i.name, times, moved / chip.bandwidth, moved)

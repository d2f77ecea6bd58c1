"""Reads what a compiled TPU program will take on a chip: seconds by part, bytes between chips, memory.

Each instruction counts as often as the loops around it run; the compiler's own totals count a loop's body once. Matrix products
take the cycles the compiler estimates for them; everything else the HBM bytes it moves, for which the estimates are 2.5 times
too high; Pallas kernels what :mod:`lumina_jax.pods.kernels` says; collectives the bytes of a ring over all links of a chip.
No launch gaps, no stragglers and no latency of collectives are in it, so a real step takes longer.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import jax

from lumina_jax.errors import InputError
from lumina_jax.pods import kernels
from lumina_jax.pods.chips import Chip
from lumina_jax.pods.collectives import collectives, is_collective
from lumina_jax.pods.hlo import Computation, Instruction, Program
from lumina_jax.pods.traffic import fusion_bytes, moved_bytes

_STARTED = ("copy-done", "all-gather-done", "all-reduce-done", "async-done", "async-update")
_NAMES = ("get-tuple-element", "tuple", "parameter", "constant", "bitcast", "iota", "after-all", "opt-barrier")
FREE = {*_NAMES, *_STARTED, "partition-id", "replica-id"}
"""Operations that move nothing, or whose start was counted."""


@dataclass(frozen=True)
class Entry:
    """One instruction: what it is part of, how often it runs, and what one run takes.

    ``part`` is "mxu", "memory", "kernels", "sync", "async" (collectives; async ones beside other work) or "dcn" (between
    slices). ``bytes`` are those of HBM, or on the wire for collectives. Of matrix products, ``ideal`` is the seconds at the peak,
    ``roof`` those that HBM would allow at best.
    """

    part: str
    name: str
    times: int
    seconds: float
    bytes: float = 0.0
    ideal: float = 0.0
    roof: float = 0.0


@dataclass(frozen=True)
class Costs:
    """The entries of one program, and their sums in seconds per chip."""

    entries: tuple[Entry, ...]

    def seconds(self, *parts: str) -> float:
        return sum(e.times * e.seconds for e in self.entries if e.part in parts)

    def bytes(self, *parts: str) -> float:
        return sum(e.times * e.bytes for e in self.entries if e.part in parts)

    def calls(self, part: str) -> dict[str, tuple[int, float]]:
        """Name -> (times, bytes) of a part; equal names are summed."""
        sums: dict[str, tuple[int, float]] = {}
        for entry in self.entries:
            if entry.part == part:
                times, size = sums.get(entry.name, (0, 0.0))
                sums[entry.name] = times + entry.times, size + entry.times * entry.bytes
        return sums

    @property
    def compute(self) -> float:
        return self.seconds("mxu", "memory", "kernels")

    @property
    def exposed(self) -> float:
        """Of asynchronous collectives and of those between slices, what no other work covers."""
        return max(0.0, self.seconds("async", "dcn") - self.compute)

    @property
    def serial(self) -> float:
        """Nothing overlaps but what the compiler made asynchronous."""
        return self.compute + self.seconds("sync") + self.exposed

    @property
    def best(self) -> float:
        """All collectives overlap."""
        return max(self.compute, self.seconds("sync", "async"), self.seconds("dcn"))

    @property
    def efficiency(self) -> float:
        """Share of the peak at which matrix products run."""
        ideal = sum(e.times * e.ideal for e in self.entries if e.part == "mxu")
        return ideal / max(self.seconds("mxu"), 1e-12)

    @property
    def roof(self) -> float:
        """Matrix products at their peak or at HBM speed, whichever is slower: the fair figure where they are thin, as in
        decoding, whose estimated cycles are too high.
        """
        products = sum(e.times * e.roof for e in self.entries if e.part == "mxu")
        return products + self.seconds("memory", "kernels", "sync")


@dataclass(frozen=True)
class Memory:
    """HBM bytes of one chip. Arguments that become results in place are counted once."""

    arguments: float
    outputs: float
    aliased: float
    temporaries: float

    @property
    def total(self) -> float:
        """What is allocated; beyond the chip's capacity the compiler refuses."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def memory(compiled: jax.stages.Compiled) -> Memory:
    """What the compiler allocated."""
    found = compiled.memory_analysis()
    return Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
    )


def costs(program: Program, chip: Chip, unbounded: int = 1) -> Costs:
    """Of the whole program. A loop without a fixed number of rounds is taken to run ``unbounded`` times."""
    return Costs(tuple(_walk(program, chip, program.entry, 1, unbounded)))


def round_costs(program: Program, chip: Chip) -> Costs:
    """Of one round of the loop whose number of rounds depends on what it computes: its body and its condition.

    Of several it is the outermost: loops in its body are counted as in :func:`costs`. Raises ValueError when there is none.
    """
    loop = next(_open_loops(program, program.entry), None)
    if loop is None:
        raise InputError("the program has no loop with an open number of rounds; it does not decode")
    parts = (_walk(program, chip, loop.refers(part), 1, 1) for part in ("body", "condition"))
    return Costs(tuple(entry for part in parts for entry in part))


def _open_loops(program: Program, name: str) -> Iterator[Instruction]:
    """Loops without a fixed number of rounds that a computation runs itself, or in what it calls."""
    for i in program[name].values():
        if i.op == "while" and program.trips(i) is None:
            yield i
        elif i.op in ("while", "call", "conditional"):
            for inner in [i.refers("body")] if i.op == "while" else _taken(i):
                yield from _open_loops(program, inner)


def _walk(program: Program, chip: Chip, name: str, times: int, unbounded: int) -> Iterator[Entry]:
    computation = program[name]
    channels: set[str] = set()
    for i in computation.values():
        if i.op in FREE or times == 0:
            continue
        if i.op == "while":
            rounds = program.trips(i)
            rounds = unbounded if rounds is None else rounds
            yield from _walk(program, chip, i.refers("body"), times * rounds, unbounded)
        elif i.op in ("call", "conditional"):
            for inner in _taken(i):
                yield from _walk(program, chip, inner, times, unbounded)
        else:
            for sent in collectives(program, i, computation, channels):
                part = "async" if sent.beside else "sync"
                yield Entry(part, f"{sent.kind}/{sent.group}", times, sent.bytes / chip.ici, sent.bytes)
            if entry := _work(program, chip, i, computation, times):
                yield entry


def _taken(i: Instruction) -> list[str]:
    """What a call or a conditional runs; of numbered branches the first."""
    taken = re.findall(r"(?:to_apply|true_computation|false_computation)=%([\w.\-]+)", i.text)
    branches = re.search(r"branch_computations=\{%([\w.\-]+)", i.text)
    return taken + ([branches[1]] if branches else [])


def _work(program: Program, chip: Chip, i: Instruction, computation: Computation, times: int) -> Entry | None:
    """What an instruction that is no collective takes of a chip."""
    if is_collective(i):
        return None
    if i.op == "custom-call":
        if kernels.TARGET not in i.text:
            return None
        return Entry("kernels", i.name.split(".")[0], times, kernels.seconds(i, computation, chip))
    if i.op in ("send", "recv"):
        return _between_slices(chip, i, computation, times)
    flops = program.flops(i, computation)
    if flops:
        moved = fusion_bytes(program, i, computation)
        seconds = i.cycles / chip.clock if i.cycles else flops / chip.flops
        ideal = flops / chip.flops
        return Entry("mxu", i.name, times, seconds, moved, ideal, max(ideal, moved / chip.bandwidth))
    if i.op.endswith(("-start", "-done")) or re.search("async.collective", i.name):
        return None  # copies between HBM and on-chip memory beside other work
    moved = moved_bytes(program, i, computation)
    return Entry("memory", i.name, times, moved / chip.bandwidth, moved)


def _between_slices(chip: Chip, i: Instruction, computation: Computation, times: int) -> Entry | None:
    """The part of a collective over several slices that leaves the slice, which the compiler writes as sending to the host."""
    if i.op == "recv" or "megascale" not in i.text:
        return None
    sent = computation.bytes(i.operands[0])
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.text)
    name = kind[1].lower().replace("_", "-") if kind else "send"
    return Entry("dcn", f"{name}/slices", times, sent / chip.dcn, sent)

"""Estimates what a compiled TPU program takes on one device: seconds by category, bytes between chips, memory.

Each instruction counts as often as the loops around it run; the compiler's own totals count the body of a loop once. Matrix
products take the cycles that the compiler estimates for them. Everything else takes the HBM bytes it moves over the bandwidth,
since the compiler's estimates of these are 2.5 times too high. :mod:`lumina_jax.pods.kernels` prices Pallas kernels;
:mod:`lumina_jax.pods.collectives` takes the bytes of a collective over the links that its groups can use, and
:mod:`lumina_jax.pods.schedule` finds out what part of it the device waits for. Real steps also have launch gaps, stragglers and
latency of collectives.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lumina_jax.pods import kernels
from lumina_jax.pods.chips import Chip
from lumina_jax.pods.collectives import Network, Phase, Tracker, collectives_in, is_collective
from lumina_jax.pods.costs import Costs, InstructionCost
from lumina_jax.pods.hlo import Computation, Instruction, Program
from lumina_jax.pods.links import Place
from lumina_jax.pods.schedule import BETWEEN_SLICES, Event, Loop, waits
from lumina_jax.pods.topology import Topology
from lumina_jax.pods.traffic import fusion_bytes, moved_bytes, moves_nothing

_STARTED = ("async-update", "call-update", "recv", "send-done")
_NAMES = ("get-tuple-element", "tuple", "parameter", "constant", "bitcast", "iota", "after-all", "opt-barrier")
FREE = {*_NAMES, *_STARTED, "partition-id", "replica-id"}
"""Operations that move nothing, or that are counted elsewhere; whatever ends in -start or -done is left out too."""


def program_costs(program: Program, topology: Topology, unbounded_trips: int = 1, order: Sequence[Place] = ()) -> Costs:
    """The costs of a program, parsed by :func:`hlo.parse`; loops whose trip count depends on data count ``unbounded_trips`` times.

    ``order`` is that of the devices in the program's mesh (:func:`lumina_jax.pods.links.places`), by default that of their ids.
    Raises InputError when the topology has other devices than the program.
    """
    walk = _Walk(program, topology, order, unbounded_trips)
    return walk.costs(walk.events(program.entry, 1))


def iteration_costs(program: Program, topology: Topology, order: Sequence[Place] = ()) -> Costs:
    """The costs of one iteration, body and condition, of the loop whose trip count depends on data.

    Of nested such loops it is the outermost, and those inside count as in :func:`program_costs`. Raises ValueError without one.
    """
    loop = next(_unbounded_loops(program, program.entry), None)
    if loop is None:
        raise ValueError("no loop of the program has a trip count that depends on data; it is no decoding loop")
    walk = _Walk(program, topology, order, 1)
    return walk.costs([event for part in ("body", "condition") for event in walk.events(loop.reference(part), 1)])


def _unbounded_loops(program: Program, name: str) -> Iterator[Instruction]:
    """Loops whose trip count depends on data, in a computation and in those it calls; outer before inner."""
    for i in program[name].values():
        if i.op == "while" and program.trip_count(i) is None:
            yield i
        elif i.op in ("while", "call", "conditional"):
            for inner in [i.reference("body")] if i.op == "while" else _branches(i):
                yield from _unbounded_loops(program, inner)


def _branches(i: Instruction) -> list[str]:
    """The computations that a call or a conditional runs; of numbered branches the first stands for all."""
    called = re.findall(r"(?:to_apply|true_computation|false_computation)=%([\w.\-]+)", i.text)
    numbered = re.search(r"branch_computations=\{%([\w.\-]+)", i.text)
    return called + ([numbered[1]] if numbered else [])


class _Walk:
    """Collects the costs of a program while it makes the schedule of its instructions."""

    def __init__(self, program: Program, topology: Topology, order: Sequence[Place], unbounded_trips: int):
        self._program, self._chip, self._unbounded_trips = program, topology.chip, unbounded_trips
        self._network = Network(topology, program.devices or topology.device_count // topology.slices, order)
        self._costs: list[InstructionCost] = []

    def costs(self, events: Sequence[Event | Loop]) -> Costs:
        """All costs that were collected, with the seconds that ``events`` wait for each."""
        _, waited = waits(events)
        pairs = enumerate(self._costs)
        return Costs(
            tuple(replace(cost, waited=waited[key] / cost.times) if waited[key] else cost for key, cost in pairs)
        )

    def events(self, name: str, times: int) -> list[Event | Loop]:
        """The schedule of a computation that runs ``times`` times, including the computations it calls."""
        computation = self._program[name]
        tracker = Tracker(self._program, computation, self._network)
        events: list[Event | Loop] = []
        for i in computation.values() if times else ():
            if i.op == "while":
                trips = self._program.trip_count(i)
                trips = self._unbounded_trips if trips is None else trips
                events.append(Loop(trips, tuple(self.events(i.reference("body"), times * trips))))
            elif i.op in ("call", "conditional"):
                events += (event for inner in _branches(i) for event in self.events(inner, times))
            elif i.op in ("send", "recv-done"):
                events += self._between_slices(i, computation, times)
            else:
                events += self._communication(tracker.phase(i), times)
                if i.op not in FREE and (cost := _cost(self._program, self._chip, i, computation, times)):
                    events.append(Event("run", self._add(cost), cost.seconds))
        return events

    def _add(self, cost: InstructionCost) -> int:
        self._costs.append(cost)
        return len(self._costs) - 1

    def _communication(self, phase: Phase | None, times: int) -> Iterator[Event]:
        """The events of the collectives in one instruction."""
        if phase is None:
            return
        if phase.name == "done":
            yield Event("done", handles=phase.handles)
        category = "sync" if phase.name == "block" else "async"
        for c in phase.collectives:
            name = f"{c.kind}/{c.group_size}" if c.group_size > 1 else c.kind
            key = self._add(InstructionCost(category, name, times, c.seconds, c.wire_bytes, links=c.links))
            yield Event(phase.name, key, c.seconds, c.busy, phase.handles)

    def _between_slices(self, i: Instruction, computation: Computation, times: int) -> Iterator[Event]:
        """A collective between slices, which the compiler expresses as a send to the host and a receive from it."""
        rendezvous = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', i.text)
        if i.op == "recv-done":
            start = computation.get(i.operands[0])
            rendezvous = start and re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', start.text)
            if rendezvous:
                yield Event("done", handles=frozenset({rendezvous[1]}))
        elif "megascale" in i.text:
            sent = computation.bytes(i.operands[0])
            kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.text)
            name = f"{kind[1].lower().replace('_', '-') if kind else 'send'}/slices"
            key = self._add(InstructionCost("dcn", name, times, sent / self._chip.dcn, sent))
            handle = rendezvous[1] if rendezvous else i.name
            yield Event("start", key, sent / self._chip.dcn, BETWEEN_SLICES, frozenset({handle}))


def _cost(program: Program, chip: Chip, i: Instruction, computation: Computation, times: int) -> InstructionCost | None:
    """The cost of an instruction apart from its communication; None when there is none."""
    if is_collective(i) or (i.op == "custom-call" and kernels.TARGET not in i.text):
        return None
    if i.op == "custom-call":
        seconds = kernels.kernel_seconds(i, computation, chip)
        return InstructionCost("kernels", i.name.split(".")[0], times, seconds)
    flops = program.flops(i, computation)
    if flops:
        moved = fusion_bytes(program, i, computation)
        ideal = flops / chip.peak(program.product_dtype(i, computation))
        seconds = i.cycles / chip.clock if i.cycles else ideal
        return InstructionCost("mxu", i.name, times, seconds, moved, ideal, max(ideal, moved / chip.bandwidth))
    if i.op.endswith(("-start", "-done")) or moves_nothing(program, i):
        return None  # copies between HBM and on-chip memory that overlap other work
    if i.op == "fusion" and next(collectives_in(program, i.reference("calls")), None):
        return None  # its bytes are those on the wire
    moved = moved_bytes(program, i, computation)
    return InstructionCost("memory", i.name, times, moved / chip.bandwidth, moved)

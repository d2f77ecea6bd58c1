"""Communication between chips: the collectives of a compiled program, the bytes that each chip sends for them, and how long.

A collective blocks its chip, or is asynchronous: a start hands its data over, a done waits for the result, and what lies between
runs meanwhile. libtpu writes that as ``all-gather-start``, as ``async-start``, as ``call-start`` on a SparseCore (whose
``call-update`` hands the data over when the start has none), or as fusions ``async-collective-start`` and ``-done`` with steps in
the fusions between them, which repeat the collective.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lumina_jax.errors import InputError
from lumina_jax.pods.hlo import Computation, Instruction, Program
from lumina_jax.pods.links import (
    DIE_LINKS,
    EVERY_LINK,
    Place,
    algorithm_links,
    default_places,
    group_links,
    permute_links,
    replica_groups,
    source_target_pairs,
    together,
)
from lumina_jax.pods.topology import Topology

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
PASSING = ("get-tuple-element", "tuple", "bitcast", "opt-barrier", "async-update", "call-update")
"""Operations that pass an asynchronous collective on under another name."""


@dataclass(frozen=True)
class Collective:
    """One collective over groups of ``group_size`` devices, each of which sends ``wire_bytes``.

    It takes ``seconds`` over the ``links`` that a group can use, and keeps those in ``busy`` from others.
    """

    kind: str
    group_size: int
    wire_bytes: float
    seconds: float
    links: float
    busy: frozenset = EVERY_LINK


class Network:
    """The ``devices`` of one program, in the order of its mesh (``order``; by default that of their ids), and their links.

    Raises InputError when there are fewer places than devices.
    """

    def __init__(self, topology: Topology, devices: int, order: Sequence[Place] = ()):
        self.topology = topology
        self.order = tuple(order) or default_places(topology, devices)
        if len(self.order) != devices:
            raise InputError(f"the program has {devices} devices, the order of its mesh {len(self.order)}")
        self._routes: dict[tuple[str, float], tuple[float, frozenset, int]] = {}

    def routes(self, text: str) -> tuple[float, frozenset, int]:
        """(links, busy ones, group size) of the collective in the text of an instruction.

        The links are those of one device, which has a part of those of its chip.
        """
        notation = re.search(r"(?:replica_groups|source_target_pairs)=.*?(?=, [a-z_]+=|$)", text)
        key = (notation[0] if notation else "", algorithm_links(text))
        if key not in self._routes:
            if pairs := source_target_pairs(text):
                self._routes[key] = (*permute_links(pairs, self.order, self.topology), 1)
            else:
                groups = replica_groups(text, len(self.order))
                size = groups.shape[1] if groups is not None else 1
                links = self._group_links(groups, text) if size > 1 else 0.0
                self._routes[key] = (links, EVERY_LINK, size)
        return self._routes[key]

    def _group_links(self, groups: np.ndarray, text: str) -> float:
        links = group_links(groups, self.order, self.topology)
        if links == DIE_LINKS:
            return links
        return min(links, algorithm_links(text)) * together(groups, self.order)

    def collective(self, i: Instruction, computation: Computation, scattered: bool) -> Collective | None:
        """The cost of a collective; None when it stays on one device.

        ``scattered``: an all-reduce fused with the slice of its result runs only the reduce-scatter half of its ring.
        """
        kind = i.op.removesuffix("-start")
        if kind == "all-reduce" and (scattered or "AllReduceScatterFusion" in i.text):
            kind = "reduce-scatter"
        links, busy, size = self.routes(i.text)
        if size == 1 and kind != "collective-permute":
            return None
        sent, chip = _wire_bytes(i, computation, kind, size), self.topology.chip
        return Collective(kind, size, sent, sent / (links * chip.ici / (2 * chip.axes)), links, busy)


def is_collective(i: Instruction) -> bool:
    return i.op.removesuffix("-start") in KINDS


@dataclass(frozen=True)
class Phase:
    """What an instruction does for collectives: ``name`` is "block", "start" or "done".

    ``handles`` are the names of the starts it belongs to, none for blocking ``collectives``.
    """

    name: str
    handles: frozenset[str] = frozenset()
    collectives: tuple[Collective, ...] = ()


class Tracker:
    """Follows the asynchronous collectives of one computation, whose instructions it is shown in program order."""

    def __init__(self, program: Program, computation: Computation, network: Network):
        self._program, self._computation, self._network = program, computation, network
        self._carries: dict[str, frozenset[str]] = {}
        self._channels: dict[str, frozenset[str]] = {}
        self._without_data: dict[str, tuple[Collective, ...]] = {}

    def phase(self, i: Instruction) -> Phase | None:
        """The phase of an instruction; None when it has nothing to do with collectives."""
        handles = frozenset().union(*(self._carries.get(name, frozenset()) for name in i.operands)) & {*self._channels}
        if i.op in PASSING:
            self._carries[i.name] = handles
            ready = handles & {*self._without_data} if i.op.endswith("-update") else ()
            return Phase("start", handles, sum(map(self._without_data.pop, ready), ())) if ready else None
        if i.op.endswith("-done") or "async-collective-done" in i.name:
            for handle in handles:
                del self._channels[handle]
            return Phase("done", handles) if handles else None
        inside = self._collectives(i)
        if inside and (i.op.endswith("-start") or "async-collective-start" in i.name):
            self._carries[i.name] = frozenset({i.name})
            self._channels[i.name] = frozenset(map(_channel, (c for c, _ in inside)))
            collectives = self._priced(i, inside)
            if i.operands:
                return Phase("start", frozenset({i.name}), collectives)
            self._without_data[i.name] = collectives
            return None
        # A step of an asynchronous collective repeats it, with its channel; others of that channel are not its own.
        stepped = {handle: self._channels[handle] for handle in handles} if i.op == "fusion" else {}
        channels = frozenset().union(*stepped.values())
        self._carries[i.name] = frozenset(h for h in stepped if any(_channel(c) in stepped[h] for c, _ in inside))
        blocking = self._priced(i, [(c, scope) for c, scope in inside if _channel(c) not in channels])
        return Phase("block", collectives=blocking) if blocking else None

    def _collectives(self, i: Instruction) -> list[tuple[Instruction, Computation]]:
        """The collectives that run in an instruction, each with the computation that holds it."""
        if is_collective(i):
            return [(i, self._computation)]
        attribute = {"fusion": "calls", "async-start": "calls", "call-start": "to_apply"}.get(i.op)
        name = i.reference(attribute) if attribute else None
        return list(collectives_in(self._program, name)) if name else []

    def _priced(self, i: Instruction, inside: list[tuple[Instruction, Computation]]) -> tuple[Collective, ...]:
        scattered = "all-reduce-scatter" in i.name or "AllReduceScatterFusion" in i.text
        priced = (self._network.collective(c, scope, scattered) for c, scope in inside)
        return tuple(collective for collective in priced if collective)


def collectives_in(program: Program, name: str) -> Iterator[tuple[Instruction, Computation]]:
    """The collectives in the computation ``name`` and in those it calls, each with the computation that holds it."""
    computation = program.get(name, Computation())
    for i in computation.values():
        if is_collective(i):
            yield i, computation
        for called in i.called:
            yield from collectives_in(program, called)


def _channel(i: Instruction) -> str:
    match = re.search(r"channel_id=(\d+)", i.text)
    return match[1] if match else ""


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

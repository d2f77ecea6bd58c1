"""The costs of one compiled program: of each instruction, and their sums."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class InstructionCost:
    """The cost of one instruction, which runs ``times`` times; the other figures are those of one execution.

    ``category`` is "mxu" (matrix products), "memory", "kernels" (Pallas), "sync" and "async" (blocking and asynchronous
    collectives) or "dcn" (between slices). ``bytes`` go to and from HBM, or over the wire for collectives. For matrix products,
    ``ideal`` is the seconds at the chip's peak and ``roofline`` the larger of these and the seconds of the HBM traffic. A
    collective is ``waited`` for so many of its seconds, and goes over ``links`` of a chip.
    """

    category: str
    name: str
    times: int
    seconds: float
    bytes: float = 0.0
    ideal: float = 0.0
    roofline: float = 0.0
    waited: float = 0.0
    links: float = 0.0


@dataclass(frozen=True)
class Transfers:
    """All collectives of one name together: how many, bytes on the wire, seconds, those waited for, and links (the fewest)."""

    times: int
    bytes: float
    seconds: float
    waited: float
    links: float

    @property
    def hidden(self) -> float:
        """The share of the seconds that is not waited for, between 0 and 1."""
        return max(0.0, 1 - self.waited / self.seconds) if self.seconds else 1.0


@dataclass(frozen=True)
class Costs:
    """The instructions of one program and their sums, in seconds of one device."""

    instructions: tuple[InstructionCost, ...]

    def seconds(self, *categories: str) -> float:
        return sum(i.times * i.seconds for i in self.instructions if i.category in categories)

    def waited(self, *categories: str) -> float:
        """Seconds of collectives that the device waits for, by the order of the program's instructions."""
        return sum(i.times * i.waited for i in self.instructions if i.category in categories)

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

    def transfers(self, category: str) -> dict[str, Transfers]:
        """Name -> its collectives, of a category of them."""
        named: dict[str, list[InstructionCost]] = {}
        for i in self.instructions:
            if i.category == category:
                named.setdefault(i.name, []).append(i)
        return {name: _total(same) for name, same in sorted(named.items())}

    @property
    def compute(self) -> float:
        return self.seconds("mxu", "memory", "kernels")

    @property
    def exposed(self) -> float:
        """Seconds of asynchronous collectives, those between slices included, that are waited for all the same."""
        return self.waited("async", "dcn")

    @property
    def serial(self) -> float:
        """As the program is scheduled: only asynchronous collectives overlap, with what it runs between start and done."""
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
        return products + self.seconds("memory", "kernels", "sync") + self.exposed


def _total(same: Sequence[InstructionCost]) -> Transfers:
    times, size = sum(i.times for i in same), sum(i.times * i.bytes for i in same)
    seconds, waited = sum(i.times * i.seconds for i in same), sum(i.times * i.waited for i in same)
    return Transfers(times, size, seconds, waited, min(i.links for i in same))


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

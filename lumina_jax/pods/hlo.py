"""Parses the HLO text of a compiled TPU program into computations of instructions, with the facts that cost estimates need."""

import functools
import math
import re
from dataclasses import dataclass

ITEM_BYTES = {
    **dict.fromkeys(("f64", "s64", "u64"), 8),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("s8", "u8", "pred", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s4", "u4"), 0.5),
}
MATMULS = ("convolution", "dot")
"""Operations that TPU programs express matrix products with."""

_ARRAY = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([^\s=]+) = (\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\((.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")


@dataclass(frozen=True)
class Array:
    """One array of a shape; ``in_hbm`` is false when the compiler keeps it in on-chip memory."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        return ITEM_BYTES[self.dtype] * self.elements


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays in the text of a shape, ``bf16[8,128]{1,0:T(8,128)S(1)}`` or a tuple of such; tokens are left out."""
    matches = (match for match in _ARRAY.findall(shape) if match[0] in ITEM_BYTES)
    return tuple(
        Array(dtype, tuple(map(int, dims.split(","))) if dims else (), not re.search(r"S\([1-9]", layout))
        for dtype, dims, layout in matches
    )


@dataclass(frozen=True)
class Instruction:
    """``operands`` are names in the same computation; ``text`` is the full line, attributes included."""

    name: str
    op: str
    shape: str
    operands: tuple[str, ...]
    text: str

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        return arrays(self.shape)

    @property
    def bytes(self) -> float:
        return sum(array.bytes for array in self.arrays)

    @property
    def hbm_bytes(self) -> float:
        return sum(array.bytes for array in self.arrays if array.in_hbm)

    @functools.cached_property
    def cycles(self) -> int:
        """The compiler's own estimate; 0 where it gives none."""
        match = _CYCLES.search(self.text)
        return int(match[1]) if match else 0

    def reference(self, attribute: str) -> str | None:
        """The name of the computation that ``attribute`` (calls, body, condition, to_apply) refers to."""
        match = re.search(attribute + r"=%([\w.\-]+)", self.text)
        return match[1] if match else None

    @property
    def called(self) -> list[str]:
        """The names of all computations that run inside this instruction."""
        return re.findall(r"(?:calls|called_computations=\{)=?%([\w.\-]+)", self.text)


class Computation(dict[str, Instruction]):
    """Instruction name -> instruction, in program order."""

    def bytes(self, name: str) -> float:
        return self[name].bytes if name in self else 0

    def hbm_bytes(self, name: str) -> float:
        return self[name].hbm_bytes if name in self else 0


class Program(dict[str, Computation]):
    """Computation name -> computation; ``entry`` is the name of the entry computation.

    ``devices`` is the number of devices that the program runs on (in each slice), 0 when the text does not say.
    """

    def __init__(self, computations: dict[str, Computation], entry: str, devices: int = 0):
        super().__init__(computations)
        self.entry = entry
        self.devices = devices
        self._flops: dict[str, float] = {}

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a while loop runs: the constant that its counter is compared with, or None when that depends on data."""
        condition = self[loop.reference("condition")]
        bounds = [int(n) for i in condition.values() for n in _CONSTANT.findall(i.text)]
        return max(bounds, default=None)

    def flops(self, instruction: Instruction, computation: Computation) -> float:
        """Operations of the matrix products in an instruction of ``computation`` and in the computations it calls."""
        if instruction.op in MATMULS:
            return _matmul_flops(instruction, computation)
        name = instruction.reference("calls")
        if name not in self:
            return 0
        if name not in self._flops:
            self._flops[name] = sum(self.flops(i, self[name]) for i in self[name].values())
        return self._flops[name]

    def product_dtype(self, instruction: Instruction, computation: Computation) -> str:
        """The dtype of the operands of the first matrix product in an instruction, or in what it calls; "" without one."""
        if instruction.op in MATMULS:
            factors = (computation[name].arrays for name in instruction.operands[:1] if name in computation)
            return next((arrays[0].dtype for arrays in factors if arrays), "")
        called = self.get(instruction.reference("calls"), {})
        return next(filter(None, (self.product_dtype(i, called) for i in called.values())), "")


def _matmul_flops(matmul: Instruction, computation: Computation) -> float:
    """2 M N K of [M K] x [K N] -> [M N], whatever the order of axes: 2 sqrt(MK * KN * MN)."""
    factors = [computation[name].arrays[0].elements for name in matmul.operands[:2] if name in computation]
    if len(factors) < 2 or not matmul.arrays:
        return 0
    return 2 * math.sqrt(math.prod(factors) * matmul.arrays[0].elements)


def parse(text: str) -> Program:
    """``compiled.as_text()`` -> Program."""
    blocks: dict[str, list[str]] = {}
    lines, entry = None, ""
    for line in text.split("\n"):
        if opening := _COMPUTATION.match(line):
            lines = blocks[opening[2]] = []
            entry = opening[2] if opening[1] else entry
        elif line == "}":
            lines = None
        elif lines is not None and line.startswith(("  %", "  ROOT")):
            lines.append(line)
        elif lines:
            lines[-1] += line  # the attributes of a kernel contain line breaks
    counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", text.partition("\n\n")[0])
    devices = math.prod(map(int, counts)) if counts else 0
    return Program({name: _computation(lines) for name, lines in blocks.items()}, entry, devices)


def _computation(lines: list[str]) -> Computation:
    computation = Computation()
    for line in lines:
        if match := _INSTRUCTION.match(line):
            name, shape, op, rest = match.groups()
            operands = tuple(re.findall(r"%([\w.\-<>]+)", rest.split("), ")[0]))
            computation[name] = Instruction(name, op, shape, operands, line)
    return computation

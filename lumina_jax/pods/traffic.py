"""HBM traffic of an instruction: arrays in on-chip memory are free, and a slice counts only the bytes it cuts out."""

import re

from lumina_jax.pods.hlo import Computation, Instruction, Program

SLICING = ("dynamic-slice", "slice", "gather")
VIEWS = ("bitcast", "reshape", "transpose")


def moves_nothing(program: Program, i: Instruction) -> bool:
    """Whether a fusion only gives its operand another tiling, which the compiler expresses as a copy onto itself."""
    if i.op != "fusion" or _viewed_operand(i) is None:
        return False
    return {j.op for j in program.get(i.reference("calls"), Computation()).values()} <= {*VIEWS, "parameter", "copy"}


def moved_bytes(program: Program, i: Instruction, computation: Computation) -> float:
    """HBM bytes that an instruction without matrix products reads and writes."""
    if i.op == "fusion":
        return fusion_bytes(program, i, computation)
    if i.op == "dynamic-update-slice":
        return 2 * computation.bytes(i.operands[1])
    if i.op in ("copy", "dynamic-slice"):
        return 2 * i.hbm_bytes
    return sum(computation.hbm_bytes(name) for name in i.operands) + i.hbm_bytes


def fusion_bytes(program: Program, i: Instruction, computation: Computation) -> float:
    """HBM bytes of a fusion: the bytes of each operand that it reads, plus the bytes of the result that it writes."""
    inner = program.get(i.reference("calls"))
    if inner is None:
        return sum(computation.hbm_bytes(name) for name in i.operands) + i.hbm_bytes
    bytes_read = 0.0
    for number, parameter in _parameters(inner).items():
        size = computation.hbm_bytes(i.operands[number]) if number < len(i.operands) else 0
        if size:
            bytes_read += min(size, _parameter_bytes(program, inner, parameter, size))
    updates = [j for j in inner.values() if j.op == "dynamic-update-slice"]
    if updates and i.hbm_bytes:
        return bytes_read + sum(inner.bytes(j.operands[1]) for j in updates if len(j.operands) > 1)
    return bytes_read + i.hbm_bytes


def _parameters(computation: Computation) -> dict[int, str]:
    """Parameter number -> instruction name."""
    parameters = [i for i in computation.values() if i.op == "parameter"]
    numbers = ((i, re.search(r"parameter\((\d+)\)", i.text)) for i in parameters)
    return {int(number[1]): i.name for i, number in numbers if number}


def _parameter_bytes(program: Program, computation: Computation, parameter: str, size: float) -> float:
    """Bytes that a computation reads of ``parameter``, which has ``size`` bytes.

    A slice reads what it cuts out, an update in place reads nothing, anything else reads all of it.
    """
    names, bytes_read = {parameter}, 0.0
    for i in computation.values():
        if _viewed_operand(i) in names:
            names.add(i.name)
    for i in computation.values():
        if i.name in names or not names & set(i.operands):
            continue
        if i.op in SLICING:
            bytes_read += i.bytes  # read from HBM even when the slice itself is kept on chip
        elif i.op == "fusion":
            inner = program.get(i.reference("calls"), Computation())
            parameters = _parameters(inner)
            for number, name in enumerate(i.operands):
                if name in names:
                    parsed = number in parameters
                    bytes_read += _parameter_bytes(program, inner, parameters[number], size) if parsed else size
        elif not (i.op == "dynamic-update-slice" and i.operands[0] in names):
            return size
    return bytes_read


def _viewed_operand(i: Instruction) -> str | None:
    """The operand that an instruction inside a fusion merely reinterprets, without moving a byte; None if there is none."""
    if i.op == "bitcast":
        return next(iter(i.operands), None)
    alias = re.search(r"output_to_operand_aliasing=\{\{\}: \((\d+), \{\}\)\}", i.text)
    return i.operands[int(alias[1])] if i.op == "fusion" and alias else None

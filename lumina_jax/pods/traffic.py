"""How many bytes an instruction moves to and from HBM: on-chip arrays are free, slices count by what they cut."""

import re

from lumina_jax.pods.hlo import Computation, Instruction, Program

SLICING = ("dynamic-slice", "slice", "gather")


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
    """HBM bytes of a fusion: of each operand what it really reads, and of the result what it really writes."""
    inner = program.get(i.refers("calls"))
    if inner is None:
        return sum(computation.hbm_bytes(name) for name in i.operands) + i.hbm_bytes
    read = 0.0
    for number, parameter in _parameters(inner).items():
        whole = computation.hbm_bytes(i.operands[number]) if number < len(i.operands) else 0
        if whole:
            read += min(whole, _read(program, inner, parameter, whole))
    updates = [j for j in inner.values() if j.op == "dynamic-update-slice"]
    if updates and i.hbm_bytes:
        return read + sum(inner.bytes(j.operands[1]) for j in updates if len(j.operands) > 1)
    return read + i.hbm_bytes


def _parameters(computation: Computation) -> dict[int, str]:
    found = ((i, re.search(r"parameter\((\d+)\)", i.text)) for i in computation.values() if i.op == "parameter")
    return {int(number[1]): i.name for i, number in found if number}


def _read(program: Program, computation: Computation, parameter: str, whole: float) -> float:
    """Bytes of ``parameter``, ``whole`` in all, that a computation reads: slices read what they cut, updates in place nothing."""
    names, read = {parameter}, 0.0
    for i in computation.values():
        if _seen_through(i) in names:
            names.add(i.name)
    for i in computation.values():
        if i.name in names or not names & set(i.operands):
            continue
        if i.op in SLICING:
            read += i.bytes  # wherever the slice goes to, it comes from HBM
        elif i.op == "fusion":
            inner = program.get(i.refers("calls"), Computation())
            parameters = _parameters(inner)
            for number, name in enumerate(i.operands):
                if name in names:
                    known = number in parameters
                    read += _read(program, inner, parameters[number], whole) if known else whole
        elif not (i.op == "dynamic-update-slice" and i.operands[0] in names):
            return whole
    return read


def _seen_through(i: Instruction) -> str | None:
    """The operand of which an instruction inside a fusion is another view: no number of it is moved."""
    if i.op == "bitcast":
        return next(iter(i.operands), None)
    whole = re.search(r"output_to_operand_aliasing=\{\{\}: \((\d+), \{\}\)\}", i.text)
    return i.operands[int(whole[1])] if i.op == "fusion" and whole else None

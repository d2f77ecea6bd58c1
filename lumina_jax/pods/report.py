"""What a compilation showed, for people (a table and a verdict) and for programs (one JSON record)."""

import gzip
import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from lumina_jax.pods.chips import GIB
from lumina_jax.pods.compile import Outcome
from lumina_jax.pods.flags import libtpu_init_args

WIDTH = 110
UNITS = {"train": "step", "prefill": "prefill", "decode": "token"}
PARTS = (
    ("mxu", "matrix products"),
    ("memory", "HBM traffic of the rest"),
    ("kernels", "Pallas kernels"),
    ("sync", "collectives, waited for"),
    ("async", "collectives beside other work"),
    ("dcn", "between slices, beside other work"),
)


def table(outcome: Outcome) -> Table:
    """Memory, time and traffic of one program on one chip."""
    o, work = outcome, outcome.work
    mesh = ", ".join(f"{axis} {size}" for axis, size in o.mesh.items() if size > 1) or "one chip"
    title = f"{o.experiment.name}: {o.what} on {o.topology} ({o.topology.chips} chips, {o.topology.cloud})"
    caption = f"mesh {mesh}; {work.rows:,} rows of {work.length:,} tokens; compiled in {o.build.seconds:.0f} s"
    shown = Table(title=title, caption=caption, box=box.SIMPLE, title_justify="left", caption_justify="left")
    shown.add_column("one chip")
    shown.add_column("", justify="right")
    shown.add_column("")
    for name, size, note in _memory(o):
        shown.add_row(name, f"{size / GIB:.2f} GiB", note)
    if o.costs:
        for add in (_add_seconds, _add_collectives):
            shown.add_section()
            add(shown, o)
    return shown


def _memory(o: Outcome) -> list[tuple[str, float, str]]:
    """(what, bytes, note)."""
    work, memory, limit = o.work, o.build.memory, f"of {o.topology.chip.hbm / GIB:.2f} GiB"
    lines = [("weights", work.weights, work.dtype)]
    if work.optimizer:
        lines.append(("optimizer state", work.optimizer, "float32"))
    if memory is None:
        return [*lines, ("the compiler asked for", o.build.needed, limit)]
    rest = max(0.0, memory.arguments + memory.outputs - memory.aliased - work.weights - work.optimizer)
    lines += [("batch and other arguments", rest, ""), ("temporaries", memory.temporaries, "")]
    return [*lines, ("HBM in all", memory.total, limit)]


def _add_seconds(shown: Table, o: Outcome) -> None:
    costs, unit = o.costs, UNITS[o.what]
    for part, name in PARTS:
        seconds = costs.seconds(part)
        if seconds:
            shown.add_row(name, duration(seconds), _about(o, part))
    if o.what == "train":
        shown.add_row("step, in series", duration(costs.serial), f"MFU at most {o.mfu(costs.serial):.1%}")
        shown.add_row("step, all collectives hidden", duration(costs.best), f"MFU at most {o.mfu(costs.best):.1%}")
        return
    shown.add_row(f"{unit}, in series", duration(costs.serial), "thin products priced too high")
    shown.add_row(f"{unit}, at the roofline", duration(costs.roof), "prefetches left out")
    if o.what == "decode":
        shown.add_row("weights and full cache, read once", duration(o.bound), "no token can be faster")


def _about(o: Outcome, part: str) -> str:
    costs = o.costs
    if part == "mxu":
        return f"at {costs.efficiency:.2f} of the peak"
    if part == "memory":
        return f"{costs.bytes('memory') / 1e9:,.1f} GB"
    if part == "kernels":
        return ", ".join(f"{times} {name}" for name, (times, _) in costs.calls("kernels").items())
    if part in ("async", "dcn"):
        covered = 1 - costs.exposed / costs.seconds("async", "dcn")
        return f"{covered:.0%} hidden"
    return ""


def _add_collectives(shown: Table, o: Outcome) -> None:
    for part, note in (("sync", "waited for"), ("async", "hidden"), ("dcn", "over the data-center network")):
        for name, (times, sent) in sorted(o.costs.calls(part).items()):
            shown.add_row(f"{name} x {times}", f"{sent / 1e9:,.3f} GB", note)


def duration(seconds: float) -> str:
    """In seconds, or milliseconds when short."""
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{1e3 * seconds:.3f} ms"


def verdict(outcome: Outcome) -> str:
    """Whether it fits, by how much, and what to change when it does not; in one or two sentences."""
    limit, spare = outcome.topology.chip.hbm / GIB, outcome.spare / GIB
    if spare >= 0 and outcome.costs:
        return f"Fits, with {spare:.1f} GiB of {limit:.2f} GiB to spare."
    by = f"by {-spare:.1f} GiB" if math.isfinite(spare) else "(the compiler does not say by how much)"
    return f"Does not fit, {by}: {_cure(outcome)}"


def _cure(o: Outcome) -> str:
    cfg, chip = o.experiment, o.topology.chip
    if o.what != "train":
        return (
            f"split the model over more chips with a larger mesh.tensor than {o.mesh['tensor']}, or use larger chips."
        )
    state = o.work.weights + o.work.optimizer
    if state > 0.7 * chip.hbm:
        return (
            f"weights and optimizer alone take {state / GIB:.1f} of {chip.hbm / GIB:.2f} GiB; split them over more chips "
            "(a larger slice, or more of it to mesh.fsdp or mesh.tensor)."
        )
    cures = []
    rows = cfg.data.batch // cfg.optim.accumulate // (o.mesh["replica"] * o.mesh["fsdp"])
    if cfg.mesh.remat != "block":
        cures.append('recompute more (mesh.remat="block" keeps the least)')
    if rows > 1:
        cures.append(f"work on fewer than {rows} rows a chip at a time (optim.accumulate={2 * cfg.optim.accumulate})")
    cures.append("or take a larger slice")
    return ", ".join(cures) + "; --plan tries these."


def record(outcome: Outcome) -> dict:
    """Plain JSON values: bytes in GiB per chip, seconds, GB on the wire per chip."""
    o, costs, memory = outcome, outcome.costs, outcome.build.memory
    found = {
        "config": o.experiment.name,
        "program": o.what,
        "topology": str(o.topology),
        "mesh": o.mesh,
        "remat": o.experiment.mesh.remat,
        "accumulate": o.experiment.optim.accumulate,
        "rows": o.work.rows,
        "tokens": o.work.tokens,
        "weights": o.work.dtype,
        "fits": costs is not None,
        "hbm_gib": {
            "weights": _short(o.work.weights / GIB),
            "optimizer": _short(o.work.optimizer / GIB),
            "temporaries": _short(memory.temporaries / GIB) if memory else None,
            "total": _short(o.build.needed / GIB) if math.isfinite(o.build.needed) else None,
            "capacity": _short(o.topology.chip.hbm / GIB),
        },
        "compile_seconds": round(o.build.seconds, 1),
        "libtpu_init_args": libtpu_init_args(o.topology.chip),
        "verdict": verdict(o),
    }
    if costs is None:
        return found
    seconds = {name: _short(costs.seconds(name)) for name, _ in PARTS}
    total = {"exposed": costs.exposed, "serial": costs.serial, "best": costs.best, "roof": costs.roof}
    found["seconds"] = seconds | {name: _short(value) for name, value in total.items()}
    found["mxu_efficiency"] = _short(costs.efficiency)
    if o.what == "train":
        found["mfu"] = {"serial": _short(o.mfu(costs.serial)), "best": _short(o.mfu(costs.best))}
    if o.what == "decode":
        found["seconds"]["bound"] = _short(o.bound)
    found["collectives"] = {
        part: {name: {"times": times, "gb": _short(sent / 1e9)} for name, (times, sent) in costs.calls(part).items()}
        for part in ("sync", "async", "dcn")
    }
    return found


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def text(outcome: Outcome) -> str:
    """:func:`table` and :func:`verdict` without colours."""
    return plain(table(outcome)) + verdict(outcome) + "\n"


def to_screen(shown: Table) -> None:
    """Prints a table, in colours and as wide as the terminal where there is one."""
    Console(width=None if sys.stdout.isatty() else WIDTH).print(shown)


def plain(shown: Table) -> str:
    """A table as plain text."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    console.print(shown)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def show(outcome: Outcome, out: Path | None) -> Outcome:
    """Prints table and verdict; with a folder ``out``, saves them there too. Returns the outcome."""
    to_screen(table(outcome))
    print(verdict(outcome), flush=True)
    for path in save(outcome, out) if out else ():
        print(path)
    return outcome


def save(outcome: Outcome, folder: Path) -> list[Path]:
    """Writes the table (.txt), the record (.json) and, where there is one, the compiled program (.hlo.gz) into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    what = outcome.what + (".int8" if "int8" in outcome.work.dtype else "")
    paths = [folder / f"{stem(outcome)}.{what}{end}" for end in (".txt", ".json", ".hlo.gz")]
    paths[0].write_text(text(outcome))
    paths[1].write_text(json.dumps(record(outcome), indent=2) + "\n")
    if outcome.costs is None:
        return paths[:2]
    paths[2].write_bytes(gzip.compress(outcome.build.text.encode(), mtime=0))
    return paths


def stem(outcome: Outcome) -> str:
    """The beginning of file names: lumina_7b_512.v5p-4x4x4, or lumina_7b_512.2-v5p-4x4x4 for two slices."""
    topology = replace(outcome.topology, slices=1)
    slices = f"{outcome.topology.slices}-" if outcome.topology.slices > 1 else ""
    return f"{outcome.experiment.name}.{slices}{str(topology).replace(':', '-')}"

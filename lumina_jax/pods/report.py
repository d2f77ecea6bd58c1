"""What a compilation showed: a table and a verdict for people, a JSON record for programs."""

import gzip
import io
import json
import math
import sys

from rich import box
from rich.console import Console
from rich.table import Table

from lumina_jax.errors import StorageError
from lumina_jax.model.tpu import OPTIONS
from lumina_jax.places import Place, place, store_errors
from lumina_jax.pods import kernels
from lumina_jax.pods.chips import GIB
from lumina_jax.pods.compile import Outcome
from lumina_jax.pods.costs import Transfers
from lumina_jax.pods.topology import Topology
from lumina_jax.storage import claim

WIDTH = 110
PLACES = ".places.json"
"""The end of the name of the file that says where a saved program's devices lie."""

CATEGORIES = (
    ("mxu", "matrix products"),
    ("memory", "HBM traffic of the rest"),
    ("kernels", "Pallas kernels"),
    ("sync", "blocking collectives"),
    ("async", "asynchronous collectives"),
    ("dcn", "between slices, asynchronous"),
)


def outcome_table(o: Outcome) -> Table:
    """Memory, time and traffic of one program on one device, which is a chip or a part of one."""
    one = f"one {o.topology.chip.unit}"
    mesh = ", ".join(f"{axis} {size}" for axis, size in o.mesh.items() if size > 1) or one
    title = f"{o.experiment.name}: {o.program} on {o.topology} ({slice_size(o.topology)}, {o.topology.cloud})"
    size = f"{o.work.rows:,} rows of {o.work.length:,} tokens"
    caption = f"mesh {mesh}; {size}; compiled in {o.compilation.seconds:.0f} s{_compiler(o)}"
    table = Table(title=title, caption=caption, box=box.SIMPLE, title_justify="left", caption_justify="left")
    table.add_column(one)
    table.add_column("", justify="right")
    table.add_column("")
    for name, size, note in _memory_rows(o):
        table.add_row(name, f"{size / GIB:.2f} GiB", note)
    if o.costs:
        for add_rows in (_add_seconds, _add_collectives):
            table.add_section()
            add_rows(table, o)
    return table


def slice_size(topology: Topology) -> str:
    """ "64 chips", and where these are not the devices, "64 chips, 128 devices"."""
    chips = f"{topology.chips} chip{'s' * (topology.chips > 1)}"
    return chips if topology.chip.devices == 1 else f"{chips}, {topology.device_count} devices"


def _compiler(o: Outcome) -> str:
    """Which packages compiled, and with which the kernels' prices were measured if that was another compiler."""
    versions = o.compilation.versions
    words = "".join(f", {name} {version}" for name, version in versions.items()).replace(",", " by", 1)
    if o.costs and o.costs.seconds("kernels") and versions.get("libtpu") != kernels.LIBTPU:
        words += f"; kernels priced by the bundles of libtpu {kernels.LIBTPU}"
    return words


def _memory_rows(o: Outcome) -> list[tuple[str, float, str]]:
    """(name, bytes, note) of each kind of memory."""
    work, hbm, limit = o.work, o.compilation.hbm, f"of {o.topology.chip.hbm / GIB:.2f} GiB"
    rows = [("weights", work.weights, work.dtype)]
    if work.optimizer:
        rows.append(("optimizer state", work.optimizer, "float32"))
    if hbm is None:
        return [*rows, ("the compiler asked for", o.compilation.needed, limit)]
    rest = max(0.0, hbm.arguments + hbm.outputs - hbm.aliased - work.weights - work.optimizer)
    rows += [("batch and other arguments", rest, ""), ("temporaries", hbm.temporaries, "")]
    return [*rows, ("HBM in total", hbm.total, limit)]


def _add_seconds(table: Table, o: Outcome) -> None:
    costs = o.costs
    for category, name in CATEGORIES:
        seconds = costs.seconds(category)
        if seconds:
            table.add_row(name, duration(seconds), _note(o, category))
    if o.program == "train":
        for name, seconds in (("in series", costs.serial), ("all collectives hidden", costs.overlapped)):
            table.add_row(f"step, {name}", duration(seconds), f"MFU at most {o.mfu(seconds):.1%}")
        return
    unit = "token" if o.program == "decode" else "prefill"
    table.add_row(f"{unit}, in series", duration(costs.serial), "overestimates thin matrix products")
    table.add_row(f"{unit}, at the roofline", duration(costs.roofline), "without prefetches")
    if o.program == "decode":
        table.add_row("weights and full cache, read once", duration(o.decode_bound), "lower bound of a token")


def _note(o: Outcome, category: str) -> str:
    costs = o.costs
    if category == "mxu":
        return f"at {costs.efficiency:.2f} of the peak"
    if category == "memory":
        return f"{costs.bytes('memory') / 1e9:,.1f} GB"
    if category == "kernels":
        return ", ".join(f"{times} {name}" for name, (times, _) in costs.calls("kernels").items())
    return f"{duration(costs.waited(category))} waited for"


def _add_collectives(table: Table, o: Outcome) -> None:
    for category, how in (("sync", "blocking"), ("async", "asynchronous"), ("dcn", "over the data-center network")):
        for name, t in o.costs.transfers(category).items():
            links = f" on {t.links:.2g} links" * (category != "dcn")
            hidden = f", {t.hidden:.0%} hidden" * (category != "sync")
            note = f"{duration(t.seconds)}{links}, {how}{hidden}"
            table.add_row(f"{name} x {t.times}", f"{t.bytes / 1e9:,.3f} GB", note)


def duration(seconds: float) -> str:
    """Formatted in seconds, or in milliseconds below 0.1 s."""
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{1e3 * seconds:.3f} ms"


def verdict(outcome: Outcome) -> str:
    """Whether the program fits, by how much, and what to change when it does not; in one or two sentences."""
    limit, free = outcome.topology.chip.hbm / GIB, outcome.free_hbm / GIB
    if free >= 0 and outcome.costs:
        return f"Fits, with {free:.1f} GiB of {limit:.2f} GiB to spare."
    excess = f"by {-free:.1f} GiB" if math.isfinite(free) else "(the compiler does not say by how much)"
    return f"Does not fit, {excess}: {_cure(outcome)}"


def _cure(o: Outcome) -> str:
    cfg, chip = o.experiment, o.topology.chip
    if o.program != "train":
        return f"split the model over more {chip.unit}s (mesh.tensor above {o.mesh['tensor']}), or use larger chips."
    state = o.work.weights + o.work.optimizer
    if state > 0.7 * chip.hbm:
        return (
            f"weights and optimizer alone take {state / GIB:.1f} of {chip.hbm / GIB:.2f} GiB; split them over more chips "
            "(a larger slice, or more of it to mesh.fsdp or mesh.tensor)."
        )
    cures = []
    rows = cfg.data.batch // cfg.optim.accumulate // (o.mesh["replica"] * o.mesh["fsdp"])
    if cfg.mesh.remat != "block":
        cures.append('recompute more (mesh.remat="block" needs the least memory)')
    if rows > 1:
        cures.append(
            f"process fewer than {rows} rows a {chip.unit} at a time (optim.accumulate={2 * cfg.optim.accumulate})"
        )
    cures.append("or take a larger slice")
    return ", ".join(cures) + "; --plan tries these."


def record(outcome: Outcome) -> dict:
    """The figures of one device as plain JSON values: memory in GiB, times in seconds, collectives in GB on the wire."""
    o, costs, compilation = outcome, outcome.costs, outcome.compilation
    hbm = compilation.hbm
    fields = {
        "config": o.experiment.name,
        "program": o.program,
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
            "temporaries": _short(hbm.temporaries / GIB) if hbm else None,
            "total": _short(compilation.needed / GIB) if math.isfinite(compilation.needed) else None,
            "capacity": _short(o.topology.chip.hbm / GIB),
        },
        "compile_seconds": round(compilation.seconds, 1),
        "versions": compilation.versions | {"kernels": f"libtpu {kernels.LIBTPU}"},
        "compiler_options": OPTIONS[o.topology.chip.name],
        "verdict": verdict(o),
    }
    if costs is None:
        return fields
    seconds = {name: _short(costs.seconds(name)) for name, _ in CATEGORIES}
    total = {"exposed": costs.exposed, "serial": costs.serial, "best": costs.overlapped, "roof": costs.roofline}
    fields["seconds"] = seconds | {name: _short(value) for name, value in total.items()}
    fields["mxu_efficiency"] = _short(costs.efficiency)
    if o.program == "train":
        fields["mfu"] = {"serial": _short(o.mfu(costs.serial)), "best": _short(o.mfu(costs.overlapped))}
    if o.program == "decode":
        fields["seconds"]["bound"] = _short(o.decode_bound)
    fields["collectives"] = {
        category: {name: transfer_figures(t) for name, t in costs.transfers(category).items()}
        for category in ("sync", "async", "dcn")
    }
    return fields


def transfer_figures(t: Transfers) -> dict[str, float]:
    """The figures of all collectives of one kind as plain JSON values."""
    figures = {"gb": t.bytes / 1e9, "seconds": t.seconds, "waited": t.waited, "links": t.links}
    return {"times": t.times} | {name: _short(value) for name, value in figures.items()}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def text(outcome: Outcome) -> str:
    """:func:`outcome_table` and :func:`verdict` without colours."""
    return plain(outcome_table(outcome)) + verdict(outcome) + "\n"


def to_screen(table: Table) -> None:
    """Prints a table, in a terminal in colours and at its width."""
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def plain(table: Table) -> str:
    """A table as plain text."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def show(outcome: Outcome, out: Place | None) -> Outcome:
    """Prints table and verdict; with a folder ``out``, also saves them there. Returns the outcome."""
    to_screen(outcome_table(outcome))
    print(verdict(outcome), flush=True)
    for path in save(outcome, out) if out else ():
        print(path)
    return outcome


def output_folder(path: str) -> Place:
    """Creates the folder of ``--out``, before minutes of compilation. Raises StorageError when that fails."""
    folder = place(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except store_errors() as error:
        raise StorageError(
            f"--out {path}: {getattr(error, 'strerror', None) or error}; name a folder that can be written"
        ) from error
    return folder


def save(outcome: Outcome, folder: Place) -> list[Place]:
    """Writes the table (.txt), the record (.json) and, if it fits, the compiled program (.hlo.gz) into ``folder``.

    Beside the program lies where its devices are (.places.json): [x, y, z, device of the chip] in the order of its mesh.
    """
    program = outcome.program + "".join(f".{name}" for name in ("int8", "int4") if name in outcome.work.dtype)
    paths = [folder / f"{stem(outcome)}.{program}{suffix}" for suffix in (".txt", ".json", ".hlo.gz", PLACES)]
    claim(folder, [path.name for path in paths], "run.py compile")
    paths[0].write_text(text(outcome))
    paths[1].write_text(json.dumps(record(outcome), indent=2) + "\n")
    if outcome.costs is None:
        return paths[:2]
    paths[2].write_bytes(gzip.compress(outcome.compilation.text.encode(), mtime=0))
    paths[3].write_text(json.dumps(outcome.order) + "\n")
    return paths


def stem(outcome: Outcome) -> str:
    """The stem of file names: lumina_7b_512.v5p-4x4x4, or lumina_7b_512.2-v5p-4x4x4 for two slices."""
    return f"{outcome.experiment.name}.{str(outcome.topology).replace(' x ', '-').replace(':', '-')}"

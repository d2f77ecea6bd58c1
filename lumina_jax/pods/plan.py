"""Searches the fastest way to train one experiment on a topology: compiles a few variants, the most promising first.

A variant changes mesh, remat policy or gradient accumulation. The global batch stays, so all variants compute the same training.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.table import Table

from lumina_jax.config import Experiment
from lumina_jax.errors import InputError
from lumina_jax.model.block import REMAT
from lumina_jax.places import Place
from lumina_jax.pods import report
from lumina_jax.pods.chips import GIB
from lumina_jax.pods.compile import Outcome, compile_train_step
from lumina_jax.pods.topology import Topology
from lumina_jax.progress import waiting
from lumina_jax.storage import claim

REMATS = (*REMAT, "none")
"""Values of mesh.remat, in rising order of memory."""

FSDP_SIZES = (16, 64, 256)
"""Values of mesh.fsdp to try besides all devices: over 16 the compiler reduce-scatters gradients, over all it all-reduces them."""

HBM_RESERVE = 0.02
"""Share of HBM to keep free for the runtime and for profiles."""


def run(cfg: Experiment, topology: Topology, tries: int, out: Place | None) -> Outcome | None:
    """Compiles at most ``tries`` variants, prints the table after each and a recommendation at the end; returns the best.

    With a folder ``out``, saves the table as .plan.txt and a record of each variant as a line of .plan.jsonl. Raises InputError
    unless ``tries`` is positive.
    """
    if tries < 1:
        raise InputError(f"--tries {tries}; it must be at least 1")
    devices, outcomes = topology.devices(), []

    def compile_variant(variant: Experiment) -> Outcome:
        with waiting("compiling a variant, which takes minutes"):
            return compile_train_step(variant, topology, devices)

    variants = search(cfg, topology, compile_variant)
    for outcome in itertools.islice(variants, tries):
        outcomes.append(outcome)
        report.to_screen(plan_table(outcomes))
    print(recommendation(outcomes), flush=True)
    if out:
        stem = report.stem(outcomes[0])
        text = report.plain(plan_table(outcomes)) + recommendation(outcomes) + "\n"
        claim(out, [f"{stem}.plan.txt", f"{stem}.plan.jsonl"], "run.py compile")
        (out / f"{stem}.plan.txt").write_text(text)
        lines = (json.dumps(report.record(outcome)) + "\n" for outcome in outcomes)
        (out / f"{stem}.plan.jsonl").write_text("".join(lines))
    return best(outcomes)


def search(cfg: Experiment, topology: Topology, compile_variant: Callable[[Experiment], Outcome]) -> Iterator[Outcome]:
    """Yields ``cfg``'s outcome, then a bisection for the variant that keeps most and still fits, then the best on other meshes."""
    variants, outcomes = by_memory(cfg, topology), []
    low, high, index = 0, len(variants), variants.index(cfg)
    while low < high:
        outcomes.append(compile_variant(variants[index]))
        yield outcomes[-1]
        low, high = (index + 1, high) if fits(outcomes[-1]) else (low, index)
        index = (low + high) // 2
    chosen = best(outcomes)
    for variant in other_meshes(chosen.experiment if chosen else cfg, topology):
        yield compile_variant(variant)


def fits(outcome: Outcome) -> bool:
    """Whether the program fits and leaves HBM_RESERVE free."""
    return outcome.costs is not None and outcome.free_hbm >= HBM_RESERVE * outcome.topology.chip.hbm


def best(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The fastest that fits."""
    return min(filter(fits, outcomes), key=lambda outcome: outcome.costs.serial, default=None)


def by_memory(cfg: Experiment, topology: Topology) -> list[Experiment]:
    """``cfg`` among its variants on the same mesh, in rising order of memory.

    First four and two times its accumulation with the least memory per row, then every remat policy with its own accumulation.
    """
    counts = [n * cfg.optim.accumulate for n in (4, 2) if cfg.data.batch % (n * cfg.optim.accumulate) == 0]
    smallest = replace(cfg, mesh=replace(cfg.mesh, remat=REMATS[0]))
    accumulated = [replace(smallest, optim=replace(cfg.optim, accumulate=count)) for count in counts]
    remats = [replace(cfg, mesh=replace(cfg.mesh, remat=name)) for name in REMATS]
    return [variant for variant in accumulated if _divides(variant, topology)] + remats


def other_meshes(cfg: Experiment, topology: Topology) -> list[Experiment]:
    """Variants that split weights over fewer or more devices, but never across slices."""
    tensor, slice_devices = cfg.mesh.tensor, topology.device_count // topology.slices
    _, present, _ = mesh_shape(cfg, topology)
    variants = []
    for fsdp in dict.fromkeys((*FSDP_SIZES, slice_devices // max(tensor, 1))):
        if tensor != -1 and slice_devices % (fsdp * tensor) == cfg.model.width % fsdp == 0 and fsdp != present:
            mesh = replace(cfg.mesh, replica=topology.device_count // (fsdp * tensor), fsdp=fsdp)
            variants.append(replace(cfg, mesh=mesh))
    return [variant for variant in variants if _divides(variant, topology)]


def mesh_shape(cfg: Experiment, topology: Topology) -> tuple[int, int, int]:
    """(replica, fsdp, tensor), with an axis of -1 resolved."""
    sizes = [cfg.mesh.replica, cfg.mesh.fsdp, cfg.mesh.tensor]
    fixed = math.prod(max(size, 1) for size in sizes)
    return tuple(topology.device_count // fixed if size == -1 else size for size in sizes)


def _divides(cfg: Experiment, topology: Topology) -> bool:
    """Whether every device gets whole rows of every microbatch."""
    replica, fsdp, _ = mesh_shape(cfg, topology)
    return cfg.data.batch % (cfg.optim.accumulate * replica * fsdp) == 0


def plan_table(outcomes: Sequence[Outcome]) -> Table:
    """One row per variant, in the order they were compiled."""
    o = outcomes[0]
    title = f"{o.experiment.name} on {o.topology}: {o.work.rows:,} rows of {o.work.length:,} tokens a step"
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    for name in ("replica x fsdp x tensor", "remat", "accum", f"rows/{o.topology.chip.unit}"):
        table.add_column(name, no_wrap=True)
    for name in ("HBM GiB", "step", "MFU at most", "compile s"):
        table.add_column(name, justify="right", no_wrap=True)
    chosen = best(outcomes)
    for o in outcomes:
        sizes, accumulate = tuple(o.mesh.values()), o.experiment.optim.accumulate
        rows = o.work.rows // (accumulate * sizes[0] * sizes[1])
        variant = [" x ".join(map(str, sizes)), o.experiment.mesh.remat, str(accumulate), str(rows)]
        needed, compile_s = f"{o.compilation.needed / GIB:.1f}", f"{o.compilation.seconds:.0f}"
        if o.costs is None:
            table.add_row(*variant, needed, "does not fit", "", compile_s)
            continue
        step, mfu = report.duration(o.costs.serial), f"{o.mfu(o.costs.serial):.1%}"
        table.add_row(*variant, needed, step, mfu, compile_s, style="bold" if o is chosen else None)
    return table


def recommendation(outcomes: Sequence[Outcome]) -> str:
    """The best variant as changes to the config, in one sentence."""
    chosen = best(outcomes)
    if chosen is None:
        return "None of these fits with room for the runtime: take a larger slice, or a smaller data.batch."
    replica, fsdp, tensor = chosen.mesh.values()
    cfg = chosen.experiment
    changes = f"mesh.replica={replica} mesh.fsdp={fsdp} mesh.tensor={tensor} mesh.remat={cfg.mesh.remat}"
    free = chosen.free_hbm / GIB
    return f"Recommended: {changes} optim.accumulate={cfg.optim.accumulate} ({free:.1f} GiB to spare)."

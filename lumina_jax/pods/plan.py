"""Tries ways to run one experiment on a topology, few and the likeliest first, and recommends the fastest that fits.

The global batch stays, so every way trains alike. A way is a mesh, what the backward pass recomputes, and how many parts the
batch is worked on in.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.table import Table

from lumina_jax.config import Experiment
from lumina_jax.model.block import REMAT
from lumina_jax.pods import report
from lumina_jax.pods.chips import GIB
from lumina_jax.pods.compile import Outcome, train_step
from lumina_jax.pods.topology import Topology

REMATS = (*REMAT, "none")
"""Values of mesh.remat, from keeping least to keeping everything."""

FSDP = (16, 64, 256)
"""Chips over which weights are split, besides all: a gradient over 16 is really scattered, over all it is summed whole first."""

RESERVE = 0.02
"""Share of HBM to stay free: the runtime and profiles want some."""


def run(cfg: Experiment, topology: Topology, tries: int, out: Path | None) -> Outcome | None:
    """Makes at most ``tries`` attempts, prints each as it comes and then the advice, and returns the best.

    With a folder ``out``, saves the table as .plan.txt and a record of each attempt as a line of .plan.jsonl.
    """
    devices, found = topology.devices(), []
    ways = search(cfg, topology, lambda way: train_step(way, topology, devices))
    for outcome in itertools.islice(ways, tries):
        found.append(outcome)
        report.to_screen(table(found))
    print(advice(found), flush=True)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        stem = report.stem(found[0])
        (out / f"{stem}.plan.txt").write_text(report.plain(table(found)) + advice(found) + "\n")
        lines = (json.dumps(report.record(outcome)) + "\n" for outcome in found)
        (out / f"{stem}.plan.jsonl").write_text("".join(lines))
    return best(found)


def search(cfg: Experiment, topology: Topology, attempt: Callable[[Experiment], Outcome]) -> Iterator[Outcome]:
    """Yields the outcome of ``cfg`` itself; then of lighter and heavier ways, halving what lies between the heaviest that fits
    and the lightest that does not; then of the best on other meshes. Take as many as there is time for.
    """
    chain, seen = ways(cfg, topology), []
    low, high, at = 0, len(chain), chain.index(cfg)
    while low < high:
        seen.append(attempt(chain[at]))
        yield seen[-1]
        low, high = (at + 1, high) if fits(seen[-1]) else (low, at)
        at = (low + high) // 2
    found = best(seen)
    for way in other_meshes(found.experiment if found else cfg, topology):
        yield attempt(way)


def fits(outcome: Outcome) -> bool:
    return outcome.costs is not None and outcome.spare >= RESERVE * outcome.topology.chip.hbm


def best(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The fastest that fits."""
    return min(filter(fits, outcomes), key=lambda outcome: outcome.costs.serial, default=None)


def ways(cfg: Experiment, topology: Topology) -> list[Experiment]:
    """``cfg`` among its neighbours, by the memory they need: a quarter and half of its rows at a time, keeping least; then all
    of them, keeping more and more.
    """
    parts = [cfg.optim.accumulate * times for times in (4, 2) if cfg.data.batch % (cfg.optim.accumulate * times) == 0]
    least = replace(cfg, mesh=replace(cfg.mesh, remat=REMATS[0]))
    fewer = [replace(least, optim=replace(cfg.optim, accumulate=count)) for count in parts]
    more = [replace(cfg, mesh=replace(cfg.mesh, remat=name)) for name in REMATS]
    return [way for way in fewer if _divides(way, topology)] + more


def other_meshes(cfg: Experiment, topology: Topology) -> list[Experiment]:
    """Weights over fewer chips or more; never over several slices."""
    tensor, inside = cfg.mesh.tensor, topology.chips // topology.slices
    now = shape(cfg, topology)
    found = []
    for fsdp in dict.fromkeys((*FSDP, inside // max(tensor, 1))):
        if tensor == -1 or inside % (fsdp * tensor) or cfg.model.width % fsdp or fsdp == now[1]:
            continue
        mesh = replace(cfg.mesh, replica=topology.chips // (fsdp * tensor), fsdp=fsdp)
        way = replace(cfg, mesh=mesh)
        if _divides(way, topology):
            found.append(way)
    return found


def shape(cfg: Experiment, topology: Topology) -> tuple[int, int, int]:
    """(replica, fsdp, tensor) with the one that is -1 filled in."""
    sizes = [cfg.mesh.replica, cfg.mesh.fsdp, cfg.mesh.tensor]
    given = math.prod(max(size, 1) for size in sizes)
    return tuple(topology.chips // given if size == -1 else size for size in sizes)


def _divides(cfg: Experiment, topology: Topology) -> bool:
    """Whether every chip gets whole rows of every part of the batch."""
    replica, fsdp, _ = shape(cfg, topology)
    return cfg.data.batch % (cfg.optim.accumulate * replica * fsdp) == 0


def table(outcomes: Sequence[Outcome]) -> Table:
    """One row per way, in the order they were tried."""
    o = outcomes[0]
    title = f"{o.experiment.name} on {o.topology}: {o.work.rows:,} rows of {o.work.length:,} tokens a step"
    shown = Table(title=title, box=box.SIMPLE, title_justify="left")
    for name in ("replica x fsdp x tensor", "remat", "parts", "rows/chip"):
        shown.add_column(name, no_wrap=True)
    for name in ("HBM GiB", "step", "MFU at most", "compile s"):
        shown.add_column(name, justify="right", no_wrap=True)
    chosen = best(outcomes)
    for o in outcomes:
        sizes, parts = tuple(o.mesh.values()), o.experiment.optim.accumulate
        rows = f"{o.work.rows // (parts * sizes[0] * sizes[1])}"
        way = [" x ".join(map(str, sizes)), o.experiment.mesh.remat, str(parts), rows]
        needed = f"{o.build.needed / GIB:.1f}"
        if o.costs is None:
            shown.add_row(*way, needed, "does not fit", "", f"{o.build.seconds:.0f}")
            continue
        figures = (report.duration(o.costs.serial), f"{o.mfu(o.costs.serial):.1%}", f"{o.build.seconds:.0f}")
        shown.add_row(*way, needed, *figures, style="bold" if o is chosen else None)
    return shown


def advice(outcomes: Sequence[Outcome]) -> str:
    """The best way as changes to the config, in one sentence."""
    chosen = best(outcomes)
    if chosen is None:
        return "None of these fits with room for the runtime: take a larger slice, or a smaller data.batch."
    replica, fsdp, tensor = chosen.mesh.values()
    cfg = chosen.experiment
    words = f"mesh.replica={replica} mesh.fsdp={fsdp} mesh.tensor={tensor} mesh.remat={cfg.mesh.remat}"
    spare = chosen.spare / GIB
    return f"Recommended: {words} optim.accumulate={cfg.optim.accumulate} ({spare:.1f} GiB to spare)."

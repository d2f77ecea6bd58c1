"""Which slices a run goes on with when some are gone, and how its mesh and processes are then."""

from collections.abc import Collection
from dataclasses import replace

from lumina_jax.config import Experiment
from lumina_jax.errors import InputError


def complete_slices(processes: Collection[int], total: int, slices: int) -> list[int]:
    """The numbers of the ``slices`` equal ones of ``total`` processes all of whose processes are among ``processes``."""
    size = total // slices
    present = [0] * slices
    for index in processes:
        present[index // size] += 1
    return [number for number, count in enumerate(present) if count == size]


def chosen_slices(complete: list[int], counts: Collection[int]) -> list[int]:
    """The first of the ``complete`` slices, as many as the largest of ``counts`` allows; empty when it allows none."""
    return complete[: max((count for count in counts if count <= len(complete)), default=0)]


def check_slices(processes: int, slices: int) -> None:
    """Raises InputError when ``processes`` do not split evenly over ``slices``."""
    if processes % slices:
        raise InputError(
            f"pod.slices={slices}: {processes} processes do not split over them; give the number of slices"
        )


def slice_counts(cfg: Experiment) -> tuple[int, ...]:
    """With how many of its ``pod.slices`` slices the experiment can run: rows and replicas must split over them."""
    total, mesh = cfg.pod.slices, cfg.mesh
    rows = [cfg.data.rows(length) // cfg.optim.accumulate for length in cfg.data.buckets]

    def fits(count: int) -> bool:
        if mesh.replica == -1:
            return all(size % (count * max(mesh.fsdp, 1)) == 0 for size in rows)
        replicas, rest = divmod(mesh.replica * count, total)
        return rest == 0 and all(size % (replicas * max(mesh.fsdp, 1)) == 0 for size in rows)

    return tuple(count for count in range(1, total + 1) if fits(count))


def on_slices(cfg: Experiment, present: int) -> Experiment:
    """``cfg`` on ``present`` of its slices: with as many fewer replicas. The batch stays, so devices take more rows each."""
    if cfg.mesh.replica == -1 or present >= cfg.pod.slices:
        return cfg
    return replace(cfg, mesh=replace(cfg.mesh, replica=cfg.mesh.replica * present // cfg.pod.slices))

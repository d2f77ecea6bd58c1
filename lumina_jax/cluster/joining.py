"""A process joins the others of its run, and JAX's own distributed runtime with them."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import jax

from lumina_jax.cluster.address import Address, find_address
from lumina_jax.cluster.processes import ProcessGroup
from lumina_jax.config import PodConfig

SLICE_VARIABLES = ("MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID", "MEGASCALE_COORDINATOR_ADDRESS")
"""Where libtpu reads the number of slices, its own and the host of the first process."""


@contextmanager
def join(
    limits: PodConfig,
    coordinator: str | None = None,
    processes: int | None = None,
    index: int | None = None,
    run: str = "",
    slice_counts: Collection[int] = (),
) -> Iterator[ProcessGroup]:
    """Joins the other processes of the run, and initializes jax.distributed.

    The first arguments as in :func:`find_address`, the others as in :class:`ProcessGroup`.
    """
    address = find_address(coordinator, processes, index, limits.join_timeout)
    group = ProcessGroup(address, limits, run, slice_counts)
    try:
        with group.guard():
            there = group.jax_address()
            if group.present < limits.slices and SLICE_VARIABLES[0] in os.environ:
                _name_slices(there, group.present)
            # JAX's own limits are longer than ours, which name the missing process where JAX aborts with a stack trace.
            start, heartbeat = int(limits.join_timeout) + 1, 2 * int(limits.heartbeat_timeout) + 1
            jax.distributed.initialize(*there, initialization_timeout=start, heartbeat_timeout_seconds=heartbeat)
            yield group
    finally:
        group.close()


def _name_slices(address: Address, present: int) -> None:
    """Tells libtpu that there are ``present`` slices, before it begins."""
    slice_index = address.index // (address.processes // present)
    values = (str(present), str(slice_index), address.coordinator.rpartition(":")[0])
    os.environ.update(zip(SLICE_VARIABLES, values, strict=True))

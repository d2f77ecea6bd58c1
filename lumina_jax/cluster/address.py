"""Where the processes of a run find each other, and which of them this one is."""

from typing import NamedTuple

from lumina_jax.errors import InputError


class Address(NamedTuple):
    """Process ``index`` of ``processes``; JAX's service in process 0 listens at ``coordinator``, host:port.

    With commas between them there may be an address for each slice, of its first process: one of them takes the place of
    process 0 when the slices before it are gone.
    """

    coordinator: str
    processes: int
    index: int

    def of_coordinators(self) -> list[tuple[str, int]]:
        """(host, port) where our own :class:`Coordinator` may be: one port above JAX's service."""
        pairs = (address.rpartition(":") for address in self.coordinator.split(","))
        return [(host.strip("[]"), int(port) + 1) for host, _, port in pairs]


def find_address(coordinator: str | None, processes: int | None, index: int | None, timeout: float) -> Address:
    """Completes what is None from the environment: Cloud TPU (GCE and GKE, all slices), Slurm or Open MPI.

    Raises InputError when there is none of them.
    """
    if None in (coordinator, processes, index):
        # jax.distributed.initialize detects this too, but only while it connects, and there is no public way to ask earlier.
        from jax._src.clusters import ClusterEnv

        coordinator, processes, index, _ = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, processes, index, None, None, int(timeout)
        )
    if None in (coordinator, processes, index):
        raise InputError(
            "no TPU pod, Slurm or MPI job was found here; say which process this is: "
            "--coordinator HOST:PORT (of process 0) --processes N --process I"
        )
    parts = [address.rpartition(":") for address in coordinator.split(",")]
    if not (all(host and port.isdigit() for host, _, port in parts) and 0 <= index < processes):
        raise InputError(
            f"--coordinator {coordinator} --processes {processes} --process {index}: "
            "expected HOST:PORT, and a process from 0 to one less than their number"
        )
    return Address(coordinator, processes, index)

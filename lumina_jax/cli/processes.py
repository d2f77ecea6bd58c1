"""Command-line options for several processes: one run that they join, or a share of the work for each."""

from argparse import ArgumentParser, Namespace

from lumina_jax.cli.arguments import at_least
from lumina_jax.errors import InputError, prefixed_errors
from lumina_jax.numbers import whole_number


def process_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--distributed", action="store_true", help="join the other processes; enough on Cloud TPU")
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="elsewhere: the address of process 0; with pod.elastic those of each slice's first process, with commas (default: the "
        "cluster's)",
    )
    parser.add_argument(
        "--processes", type=at_least(1), metavar="N", help="elsewhere: how many there are (default: the cluster's)"
    )
    parser.add_argument(
        "--process",
        type=at_least(0),
        metavar="I",
        help="elsewhere: the number of this one, from 0 (default: the cluster's)",
    )


def join(options: Namespace, limits, run: str, slice_counts=()):
    """A context manager whose value is the run's Group: all processes with --distributed, else this one alone.

    ``run`` and ``slice_counts`` are as in cluster.processes.ProcessGroup.
    """
    address = (options.coordinator, options.processes, options.process)
    if not options.distributed and address != (None, None, None):
        raise InputError("--coordinator, --processes and --process go with --distributed")
    from contextlib import nullcontext

    from lumina_jax.progress import waiting

    with waiting("loading JAX"):
        from lumina_jax.cluster import joining, processes
    if not options.distributed:
        return nullcontext(processes.SingleProcess(limits))
    return joining.join(limits, *address, run, slice_counts)


def worker(text: str) -> tuple[int, int]:
    """The value of --worker: "I/N", or "auto" for what the cluster's environment says -> (I, N)."""
    if text == "auto":
        from lumina_jax.cluster.address import find_address
        from lumina_jax.config import PodConfig

        try:
            address = find_address(None, None, None, PodConfig().join_timeout)
        except ValueError as error:
            raise InputError("no TPU pod, Slurm or MPI job was found; give --worker I/N") from error
        return address.index, address.processes
    index, _, workers = text.partition("/")
    with prefixed_errors(f"{text!r}: expected --worker I/N with I from 0 to N - 1"):
        count = whole_number(workers, 1)
        return whole_number(index, 0, count - 1), count

"""Command-line options for several processes: one run that they join, or a share of the work for each."""

from argparse import ArgumentParser, Namespace

from lumina_jax.errors import InputError


def process_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--distributed", action="store_true", help="join the other processes; enough on Cloud TPU")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: the address of process 0")
    parser.add_argument("--processes", type=int, metavar="N", help="elsewhere: how many there are")
    parser.add_argument("--process", type=int, metavar="I", help="elsewhere: the number of this one, from 0")


def join(options: Namespace, limits):
    """A context manager whose value is the run's Group: all processes with --distributed, else this one alone."""
    address = (options.coordinator, options.processes, options.process)
    if not options.distributed and address != (None, None, None):
        raise InputError("--coordinator, --processes and --process go with --distributed")
    from contextlib import nullcontext

    from lumina_jax.cluster import processes

    return processes.join(limits, *address) if options.distributed else nullcontext(processes.SingleProcess())


def worker(text: str) -> tuple[int, int]:
    """The value of --worker: "I/N", or "auto" for what the cluster's environment says -> (I, N)."""
    if text == "auto":
        from lumina_jax.cluster.processes import find_address
        from lumina_jax.config import PodConfig

        try:
            address = find_address(None, None, None, PodConfig().join_timeout)
        except ValueError as error:
            raise InputError("no TPU pod, Slurm or MPI job was found; give --worker I/N") from error
        return address.index, address.processes
    index, _, workers = text.partition("/")
    if not (index.isdigit() and workers.isdigit() and int(index) < int(workers)):
        raise InputError(f"{text!r}: expected --worker I/N with I from 0 to N - 1")
    return int(index), int(workers)

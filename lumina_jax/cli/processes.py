"""Several processes on one task: joined to one run, or each with a share of its own."""

from argparse import ArgumentParser, Namespace

from lumina_jax.errors import InputError


def process_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--distributed", action="store_true", help="join the other processes of the run: all is found on Cloud TPU"
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 is to be reached")
    parser.add_argument("--processes", type=int, metavar="N", help="elsewhere: how many there are")
    parser.add_argument("--process", type=int, metavar="I", help="elsewhere: which this is, from 0")


def join(options: Namespace, limits):
    """The processes that the command line joins, as a context; without --distributed this one alone."""
    place = (options.coordinator, options.processes, options.process)
    if not options.distributed and any(part is not None for part in place):
        raise InputError("--coordinator, --processes and --process go with --distributed")
    from contextlib import nullcontext

    from lumina_jax.cluster.processes import Alone, joined

    return joined(limits, *place) if options.distributed else nullcontext(Alone())


def worker(text: str) -> tuple[int, int]:
    """--worker I/N, or auto -> (I, N)."""
    if text == "auto":
        from lumina_jax.cluster.processes import find_place
        from lumina_jax.config import PodConfig

        try:
            place = find_place(None, None, None, PodConfig().wait)
        except ValueError as error:
            raise InputError("no TPU pod, Slurm or MPI job is to be found here; give --worker I/N") from error
        return place.index, place.processes
    first, _, last = text.partition("/")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise InputError(f"{text!r}: expected --worker I/N with I from 0 to N - 1")
    return int(first), int(last)

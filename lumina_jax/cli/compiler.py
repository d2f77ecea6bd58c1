"""What is said at the start of a run about the compiler of its devices, and where compiled programs are kept."""

import os
import sys
from argparse import ArgumentParser, Namespace

from lumina_jax.cli.arguments import output_path
from lumina_jax.errors import InputError


def say_compiler_options() -> None:
    """Prints the compiler options of this machine's TPU on stderr, and a warning for each that the environment contradicts.

    Only process 0 does, and nothing is printed without a TPU.
    """
    import jax

    from lumina_jax.model.tpu import KINDS, compiler_options, contradictions

    kind = jax.devices()[0].device_kind
    if jax.process_index() or jax.default_backend() != "tpu":
        return
    options = compiler_options(kind)
    if options is None:
        line = f"warning: no compiler options are known for {kind}, only for {', '.join(KINDS)}; programs may be slow"
        print(line, file=sys.stderr)
        return
    words = " ".join(f"{name}={value}" for name, value in options.items())
    print(f"compiler options for {kind}: {words}", file=sys.stderr)
    for line in contradictions(options, os.environ):
        print(f"warning: {line}", file=sys.stderr)


def compile_cache_arguments(parser: ArgumentParser) -> None:
    """--compile-cache and --no-cache."""
    cache_help = (
        "local folder of compiled programs, which a later start loads (default: JAX_COMPILATION_CACHE_DIR, else "
        "lumina_jax/compiled in XDG_CACHE_HOME or ~/.cache, of at most 2 GiB)"
    )
    parser.add_argument("--compile-cache", type=output_path, metavar="FOLDER", help=cache_help)
    parser.add_argument("--no-cache", action="store_true", help="keep no compiled programs, and load none")


def keep_compiled(options: Namespace) -> None:
    """Keeps compiled programs as the options say. Raises InputError where they contradict each other, or for a URL."""
    from lumina_jax.compile_cache import keep_programs

    folder = options.compile_cache or ""
    if folder and options.no_cache:
        raise InputError(f"--no-cache --compile-cache {folder}: programs are kept or not; give one of the two")
    if "://" in folder:
        raise InputError(f"--compile-cache {folder}: programs are kept on a disk of this machine; give a local folder")
    keep_programs(folder, off=options.no_cache)

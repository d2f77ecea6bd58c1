"""What is said at the start of a run about the compiler of its devices."""

import os
import sys


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

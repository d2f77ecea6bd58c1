"""Does the TPU compiler that is installed support the options of each chip? Compiles a small step for a slice of each.

``python tests/bench/compiler_options.py`` prints a JSON line for each chip: what the compiler refused, what it warned of one of
the options, and how many collectives run on SparseCores. ``--only v5p`` takes one chip; ``--add xla_tpu_x=true`` adds an option.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lumina_jax.model.tpu import OPTIONS
from lumina_jax.pods.chips import CHIPS
from lumina_jax.pods.topology import environment, parse

if TYPE_CHECKING:
    from jax.stages import Compiled, Lowered

SLICES = {"v4": "v4:4x4x4", "v5e": "v5e:16x16", "v5p": "v5p:4x4x4", "v6e": "v6e:16x16", "tpu7x": "tpu7x:4x4x4"}
"""Large enough that weights are gathered over an axis of the torus and gradients summed over replicas, as in the pod configs."""
LOGS = {"TPU_STDERR_LOG_LEVEL": "0", "TPU_MIN_LOG_LEVEL": "0", "TF_CPP_MIN_LOG_LEVEL": "0", "TPU_LOG_DIR": "disabled"}
"""Variables that make libtpu print its warnings to stderr; by default it prints errors alone."""
SUSPECT = ("continuation fusion", "not supported", "not recommended")
"""Words of a warning that is about an option even if it names none."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=CHIPS, help="one chip (default: all)")
    parser.add_argument("--add", action="append", default=[], metavar="NAME=VALUE", help="also this option")
    arguments = parser.parse_args()
    os.environ.update(environment() | LOGS)
    os.environ.pop("XLA_FLAGS", None)
    added = dict(option.split("=", 1) for option in arguments.add)
    for chip in [arguments.only] if arguments.only else CHIPS:
        print(json.dumps(check(chip, added)), flush=True)


def check(chip: str, added: dict[str, str]) -> dict:
    """What the compiler says to a small step for ``chip`` with its options and those ``added``."""
    start, options = time.monotonic(), OPTIONS[chip] | added
    lowered = lowered_step(parse(SLICES[chip]).devices())
    compiled, log = with_log(lambda: lowered.compile(compiler_options=options))
    program = "" if isinstance(compiled, Exception) else compiled.as_text()
    lines = [line for line in log.splitlines() if re.match(r"[WEF]\d{4} ", line)]
    return {
        "chip": chip,
        "jax": version("jax"),
        "libtpu": version("libtpu"),
        "refused": "" if program else str(compiled),
        "warnings": [line for line in lines if any(word in line.lower() for word in (*options, *SUSPECT))],
        "sparsecore_calls": len(re.findall(r'call-start\(.*async_execution_thread="sparsecore"', program)),
        "seconds": round(time.monotonic() - start, 1),
    }


def lowered_step(devices: list) -> "Lowered":
    """A step of gradient descent on a scan over two MLPs: weights split over 16 devices and gathered by layer, rows over all."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec as P

    from lumina_jax.config import MeshConfig
    from lumina_jax.sharding import ROWS, make_mesh

    mesh = make_mesh(MeshConfig(replica=len(devices) // 16, fsdp=16), devices)

    def place(x, *axes):
        return jax.lax.with_sharding_constraint(x, jax.NamedSharding(mesh, P(*axes)))

    def layer(x, weights):
        up, down = map(place, weights)
        return place(x + jnp.tanh(x @ up) @ down, ROWS), None

    def loss(weights, x):
        return jnp.square(jax.lax.scan(layer, x, weights)[0]).sum()

    def step(weights, x):
        grads = jax.tree.map(lambda g: place(g, None, "fsdp"), jax.grad(loss)(weights, x))
        norm = jnp.sqrt(sum(jnp.square(g).sum() for g in grads))
        return jax.tree.map(lambda w, g: w - g / norm, weights, grads)

    def shape(sizes, *axes):
        return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=jax.NamedSharding(mesh, P(*axes)))

    weights = shape((2, 512, 2048), None, "fsdp"), shape((2, 2048, 512), None, "fsdp")
    return jax.jit(step, donate_argnums=0).lower(weights, shape((len(devices), 256, 512), ROWS))


def with_log(call: Callable[[], "Compiled"]) -> "tuple[Compiled | Exception, str]":
    """The result of ``call``, or the compiler's refusal, and what was written to stderr meanwhile, by libraries too."""
    from jax.errors import JaxRuntimeError

    with tempfile.TemporaryFile() as log:
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            result = call()
        except JaxRuntimeError as error:
            result = error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        log.seek(0)
        return result, log.read().decode(errors="replace")


if __name__ == "__main__":
    main()

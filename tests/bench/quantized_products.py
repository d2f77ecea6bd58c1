"""Int8 or fp8 beside bfloat16, read off compiled programs without a TPU: ``python tests/bench/quantized_products.py v5e:1x1``.

The MLP of a 7B layer, forward and backward, on 4 rows of 1,280 tokens of one device; 9 products of 0.46 TFLOP, and what rounds
their operands. One JSON line for each topology: milliseconds of products and of the rest, and the ratio to bfloat16. It needs
libtpu; a program takes minutes to compile.
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lumina_jax.pods.topology import Topology, environment, parse

os.environ.update(environment())

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.model.block import product
from lumina_jax.model.parts import swiglu
from lumina_jax.model.quant import Quantized
from lumina_jax.model.tpu import OPTIONS
from lumina_jax.pods import hlo
from lumina_jax.pods.executable import program_costs
from lumina_jax.sharding import make_mesh

ROWS, LENGTH = 4, 1280


def mlp(x: jax.Array, weights: list[jax.Array], key: jax.Array, change: jax.Array, kind: str):
    """(y, gradients of x [B T D] and the three weights) of an MLP whose output has the gradient ``change``."""

    def forward(x: jax.Array, weights: list[jax.Array]) -> jax.Array:
        if kind != "none":
            keys = jax.random.split(key, len(weights))
            weights = [Quantized(w, kind, key) for w, key in zip(weights, keys, strict=True)]
        gate, up, down = weights
        return product("BTF,FD->BTD", swiglu(product("BTD,DF->BTF", x, gate), product("BTD,DF->BTF", x, up)), down)

    y, pull = jax.vjp(forward, x, weights)
    return y, pull(change)


def milliseconds(topology: Topology, kind: str) -> dict[str, float]:
    """Of the products and of the rest, as the compiled program has them."""
    mesh, sizes = make_mesh(MeshConfig(), topology.devices()[:1]), ModelConfig()
    place = NamedSharding(mesh, P())

    def bf16(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)

    key = jax.eval_shape(lambda: jax.random.key(0))
    x, up, down = bf16(ROWS, LENGTH, sizes.width), bf16(sizes.width, sizes.mlp), bf16(sizes.mlp, sizes.width)
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=place)
    jitted = jax.jit(mlp, static_argnums=4, compiler_options=OPTIONS[topology.chip.name])
    with jax.set_mesh(mesh):
        compiled = jitted.lower(x, [up, up, down], key, x, kind).compile()
    costs = program_costs(hlo.parse(compiled.as_text()), topology)
    return {
        name: round(1e3 * costs.seconds(category), 2) for name, category in (("products", "mxu"), ("rest", "memory"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topologies", nargs="+", metavar="TOPOLOGY", help="one chip each: v5e:1x1 v6e:1x1 tpu7x:1x1x1")
    parser.add_argument("--kind", choices=("int8", "fp8"), default="int8", help="mesh.quant (int8)")
    options = parser.parse_args()
    for topology in map(parse, options.topologies):
        plain, quantized = (milliseconds(topology, kind) for kind in ("none", options.kind))
        ratio = round(sum(quantized.values()) / sum(plain.values()), 3)
        line = {
            "benchmark": "quantized products",
            "topology": str(topology),
            "bfloat16": plain,
            options.kind: quantized,
        }
        print(json.dumps(line | {"ratio": ratio, "jax": jax.__version__}), flush=True)


if __name__ == "__main__":
    main()

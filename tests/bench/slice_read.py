"""Bytes that each host of a pod reads of an imported checkpoint: ``python tests/bench/slice_read.py`` prints one JSON line.

--layers layers with the shapes of --config, random in bfloat16, are saved by one device, as an import does, into a server of the
protocol of Google Cloud Storage in this process. Then each of --hosts simulated hosts in turn reads its slices along fsdp, as Orbax
restores them, and the server counts the bytes that it sends. ``largest`` is that of the host that reads most, over its share.
"""

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from gcs_server import GcsServer
from orbax.checkpoint import v1 as ocp
from slice_reads import host_reads

from lumina_jax.model.chameleon import Chameleon
from lumina_jax.train.chunks import axes_of, saving_context
from lumina_jax.train.integrity import STATE

URL = "gs://bucket/run/0"
VOCAB = 8192
"""Rows of the embedding, and columns of the head: an eighth of the released ones, which are cut the same way."""


def random(shape: tuple[int, ...], rng: np.random.Generator) -> jax.Array:
    """bf16 of random bits but for the exponent's highest, so that all are finite."""
    bits = rng.integers(0, 1 << 16, shape, np.uint16) & np.uint16(0xBFFF)
    return jnp.asarray(bits.view(jnp.bfloat16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs.lumina_34b_512")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--hosts", type=int, default=16)
    options = parser.parse_args()
    cfg = import_module(options.config).experiment.model
    cfg = type(cfg)(**{**vars(cfg), "layers": options.layers, "vocab": VOCAB})
    model, rng = jax.eval_shape(lambda: Chameleon(cfg, nnx.Rngs(0))), np.random.default_rng(0)
    letters, shapes = {}, {}
    for path, node in jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda node: isinstance(node, nnx.Variable)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        letters[name], shapes[name] = node.get_metadata()["letters"], node.shape
    with GcsServer() as store:
        store.buckets.make("bucket")
        os.environ.update(store.environment)
        with saving_context(axes_of(model)):
            ocp.save_checkpointables(URL, {STATE: {name: random(shape, rng) for name, shape in shapes.items()}})
        reads = [host_reads(store, URL, letters, shapes, host, options.hosts) for host in range(options.hosts)]
    sent, shares = zip(*reads, strict=True)
    result = {
        "config": options.config,
        "layers": options.layers,
        "hosts": options.hosts,
        "stored_mb": round(2e-6 * sum(map(np.prod, shapes.values())), 1),
        "share_mb": round(1e-6 * shares[0], 1),
        "read_mb": [round(1e-6 * size, 1) for size in sent],
        "largest": round(max(size / share for size, share in reads), 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Token ids through a checkpoint in float32, by the code of its own layout or by lumina_jax, with one layer in memory at a time."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert import reference
from convert.buffers import copy_into
from convert.reference import ForwardPass
from convert.sources import Checkpoint
from convert.table import ROWS, WeightRow
from lumina_jax.config import MeshConfig
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sharding import make_mesh
from lumina_jax.train.checkpoint import unflatten

BY_PATH = {row.path: row for row in ROWS}


def forward(source: Checkpoint, ids: np.ndarray, advance: Callable[[], None] = reference.do_nothing) -> ForwardPass:
    """Token ids i32[B T] through ``source`` by the code of its layout: transformers', Meta's arithmetic, or lumina_jax.

    ``advance`` is called behind each layer.
    """
    if source.layout == "meta":
        return reference.meta_forward(*reference.read_meta(source.folder), ids, advance)
    if source.layout in ("hf", "lumina"):
        return reference.transformers_forward(*reference.read_hugging_face(source.folder), ids, advance)
    return lumina_forward(source, ids, advance)


def lumina_forward(
    source: Checkpoint, ids: np.ndarray, advance: Callable[[], None] = reference.do_nothing
) -> ForwardPass:
    """Token ids i32[B T] through ``source`` of any layout, read by the conversion table and run by lumina_jax on the CPU."""
    # On the CPU, where float32 is exact and the memory is that of the other implementations.
    mesh = make_mesh(MeshConfig(fsdp=1), jax.local_devices(backend="cpu")[:1])
    with jax.set_mesh(mesh):
        x = np.asarray(source.read(BY_PATH["embedding"], 0, {})[ids], np.float32)
        layers = [x]
        # A model of one layer whose tokens are the rows of x: its embedding is the output of the layer before.
        slots = np.arange(ids.size, dtype=np.int32).reshape(ids.shape)
        shapes = jax.eval_shape(lambda: Chameleon(replace(source.cfg, layers=1, vocab=ids.size), nnx.Rngs(0)))
        unused = {"norm/scale": shapes.norm, "head": shapes.head}
        unused = {name: np.zeros(jax.tree.leaves(shape)[0].shape, np.float32) for name, shape in unused.items()}
        for layer in range(source.cfg.layers):
            weights = {row.path: _copy(source, row, layer)[None] for row in ROWS if row.per_layer}
            table = layers[-1].reshape(ids.size, -1)
            layers.append(np.asarray(_run_layer(unflatten(shapes, {**weights, **unused, "embedding": table}), slots)))
            advance()
        norm, head = (_copy(source, BY_PATH[name], 0) for name in ("norm/scale", "head"))
        last = unflatten(shapes, {**weights, "embedding": table, "norm/scale": norm, "head": head})
        return ForwardPass(layers, np.asarray(_logits(last, layers[-1])))


@jax.jit
def _run_layer(model: Chameleon, ids: jax.Array) -> jax.Array:
    return _float32(model).layers(ids)[1]


@jax.jit
def _logits(model: Chameleon, hidden: jax.Array) -> jax.Array:
    return _float32(model).logits(_float32(model).norm(hidden))


def _float32(model: Chameleon) -> Chameleon:
    return jax.tree.map(lambda w: w.astype(jnp.float32), model)


def _copy(source: Checkpoint, row: WeightRow, layer: int) -> np.ndarray:
    """One layer of ``row``, in the dtype that it is stored in."""
    array = source.read(row, layer, {})
    copy = np.empty(array.shape, array.dtype)
    copy_into(copy, array)
    return copy

"""A fingerprint changes with any value, shape or name, and not with the mesh; training does not import qwix."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.int8 import quantized
from lumina_jax.model.params import fingerprint
from lumina_jax.sharding import make_mesh, shardings

CFG = ModelConfig(vocab=64, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=48, qk_groups=2, dropout=0.0)
KINDS = {
    "float32": lambda model: model,
    "bfloat16": lambda model: jax.tree.map(lambda x: x.astype(jnp.bfloat16), model),
    "int8": quantized,
}


def model(kind: str = "float32", seed: int = 0) -> Chameleon:
    return KINDS[kind](Chameleon(CFG, nnx.Rngs(seed)))


@pytest.mark.smoke
@pytest.mark.parametrize("kind", KINDS)
def test_a_fingerprint_changes_with_any_weight_and_with_nothing_else(kind):
    weights = model(kind)
    same = fingerprint(weights)
    assert len(same) == 16 and int(same, 16) >= 0
    assert fingerprint(jax.tree.map(jnp.copy, weights)) == same == fingerprint(model(kind))
    arrays, tree = jax.tree.flatten(weights)
    fingerprints = {same}
    for i, x in enumerate(arrays):
        last = (-1,) * x.ndim
        other = x.at[last].set(x[last] + jnp.asarray(1, x.dtype))
        fingerprints.add(fingerprint(tree.unflatten([*arrays[:i], other, *arrays[i + 1 :]])))
    assert len(fingerprints) == 1 + len(arrays)


def test_names_shapes_and_dtypes_count():
    x = jnp.arange(6.0).reshape(2, 3)
    trees = ({"a": x}, {"b": x}, {"a": x.T}, {"a": x.astype(jnp.bfloat16)}, {"a": x, "b": x})
    assert len(set(map(fingerprint, trees))) == len(trees)
    assert len({fingerprint({"a": jnp.zeros(2, kind)}) for kind in (jnp.float32, jnp.int8, jnp.bfloat16)}) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(1, 4, 2), (2, 2, 2), (1, 8, 1)])
def test_eight_devices_give_the_fingerprint_of_one(kind, sizes):
    weights = model(kind)
    mesh = make_mesh(MeshConfig(*sizes), jax.devices())
    assert fingerprint(jax.device_put(weights, shardings(weights, mesh))) == fingerprint(weights)


@pytest.mark.smoke
def test_training_does_not_import_the_library_that_quantizes():
    """Neither the model nor a train step needs qwix."""
    code = "import sys; import lumina_jax.train.loop, lumina_jax.train.step; sys.exit('qwix' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0

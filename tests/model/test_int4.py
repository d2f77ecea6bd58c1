"""Int4 matrices: rounding errs by half a step, and products are those of the dequantized matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.model import int4
from lumina_jax.model.block import product
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.int8 import SUMMED, logit_error, quantized
from lumina_jax.model.params import Int4, fingerprint, is_param
from lumina_jax.sharding import make_mesh, shardings

CFG = ModelConfig(vocab=64, width=128, layers=2, heads=2, kv_heads=2, head_dim=64, mlp=192, qk_groups=2, dropout=0.0)


@pytest.fixture(scope="module")
def model() -> Chameleon:
    return Chameleon(CFG, nnx.Rngs(0))


@pytest.mark.parametrize("letters", ["BTD,DHK->BHTK", "BTHK,HKD->BTD", "BTF,FD->BTD"])
def test_rounding_errs_by_half_a_step_and_products_are_those_of_the_matrix(letters):
    sizes = dict(B=2, T=3, D=16, H=4, K=8, F=24)
    inputs, matrix = letters.split("->")[0].split(",")
    x, w = (jax.random.normal(jax.random.key(i), [sizes[c] for c in axes]) for i, axes in enumerate((inputs, matrix)))
    codes, scale = (grouped := int4.quantize_int4(w, matrix, 4)[...])
    summed = matrix.index(SUMMED[matrix][-1])
    split = (*w.shape[:summed], w.shape[summed] // 4, 4, *w.shape[summed + 1 :])
    assert codes.dtype == jnp.int4 and codes.shape == split
    assert scale.dtype == jnp.bfloat16 and scale.shape == (*split[: summed + 1], 1, *split[summed + 2 :])
    # 7.5 steps are the largest number of a group, and a scale of 8 bits errs by 1/256 of it.
    near = grouped.matrix(jnp.float32)
    assert (np.abs(near - w.reshape(split)) <= 0.54 * np.asarray(scale, np.float32)).all()
    assert jnp.allclose(product(letters, x, grouped), jnp.einsum(letters, x, near.reshape(w.shape)), atol=1e-5)


def test_a_model_in_int4_is_near_and_its_cache_agrees(model):
    ids, small = jnp.arange(60).reshape(2, 30), int4.quantized_int4(model)
    matrices = [node for node in jax.tree.leaves(small, is_leaf=lambda node: is_param(node) or isinstance(node, Int4))]
    assert sum(isinstance(node, Int4) for node in matrices) == 7
    exact = model.logits(model(ids))
    error, of_int8 = (logit_error(exact, other.logits(other(ids))) for other in (small, quantized(model)))
    assert of_int8.rms < error.rms < 0.45 * error.spread
    hidden, cache = small.cached(ids[:, :7], small.empty_cache(2, 32))
    rest, _ = small.cached(ids[:, 7:], cache)
    assert jnp.allclose(jnp.concatenate([hidden, rest], axis=1), small(ids), atol=1e-4)
    assert fingerprint(small) != fingerprint(model)


def test_codes_and_scales_are_sharded_like_their_weights(model):
    mesh = make_mesh(MeshConfig(replica=1, fsdp=2, tensor=1), jax.devices()[:2])
    small = int4.quantized_int4(model)
    placed = jax.device_put(small, shardings(small, mesh))
    assert placed.blocks.mlp.gate.scale[...].sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", None, None)
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (small, placed)), strict=True))


def test_consume_deletes_the_matrices_that_became_int4():
    model = Chameleon(CFG, nnx.Rngs(0))
    gate = model.blocks.mlp.gate[...]
    int4.quantized_int4(model, consume=True)
    assert gate.is_deleted()

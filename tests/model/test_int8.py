"""Int8 matrices: rounding errs by half a step at most, and products are those of the dequantized matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.model.block import product
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.int8 import SUMMED, logit_error, quantize, quantized
from lumina_jax.model.params import Int8, is_param
from lumina_jax.sharding import make_mesh, shardings

CFG = ModelConfig(vocab=64, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=48, qk_groups=2, dropout=0.0)


@pytest.fixture(scope="module")
def model() -> Chameleon:
    return Chameleon(CFG, nnx.Rngs(0))


def dequantized(weight) -> np.ndarray:
    """A weight as f32, int8 or not."""
    if not isinstance(weight, Int8):
        return np.asarray(weight[...])
    codes, scale = weight[...]
    letters, channels = (param.get_metadata()["letters"] for param in (weight.codes, weight.scale))
    stacked = "L" * (codes.ndim - len(letters))
    return np.einsum(f"{stacked}{letters},{stacked}{channels}->{stacked}{letters}", np.float32(codes), scale)


def weights(model) -> list:
    return jax.tree.leaves(model, is_leaf=lambda node: is_param(node) or isinstance(node, Int8))


@pytest.mark.smoke
def test_rounding_errs_by_half_a_step_at_most(model):
    pairs = list(zip(weights(model), weights(quantized(model)), strict=True))
    assert sum(isinstance(after, Int8) for _, after in pairs) == 7
    for before, after in pairs:
        if not isinstance(after, Int8):
            assert before is after and before.get_metadata()["letters"] not in SUMMED
            continue
        codes, scale = after[...]
        letters = before.get_metadata()["letters"]
        assert codes.dtype == jnp.int8 and codes.shape == before.shape and scale.dtype == jnp.float32
        axes = tuple(1 + letters.index(letter) for letter in SUMMED[letters])
        assert (np.abs(np.int32(codes)).max(axes) >= 127).all()
        steps = np.expand_dims(np.asarray(scale), axes)
        assert (np.abs(dequantized(after) - before[...]) <= 0.5001 * steps).all()


@pytest.mark.smoke
@pytest.mark.parametrize("letters", ["BTD,DHK->BHTK", "BTHK,HKD->BTD", "BTD,DF->BTF"])
def test_products_are_those_of_the_dequantized_matrix(letters):
    sizes = dict(B=2, T=3, D=16, H=4, K=8, F=24)
    inputs, matrix = letters.split("->")[0].split(",")
    x, w = (jax.random.normal(jax.random.key(i), [sizes[c] for c in axes]) for i, axes in enumerate((inputs, matrix)))
    int8 = quantize(w, matrix)
    assert jnp.allclose(product(letters, x, int8[...]), jnp.einsum(letters, x, dequantized(int8)), atol=1e-5)


def test_a_model_and_its_dequantized_copy_are_the_same(model):
    int8 = quantized(model)
    copy = jax.tree.map(
        lambda weight, matrix: weight.replace(jnp.asarray(dequantized(matrix))),
        model,
        int8,
        is_leaf=lambda node: is_param(node) or isinstance(node, Int8),
    )
    ids = jnp.arange(24).reshape(2, 12)
    assert jnp.allclose(copy(ids), int8(ids), atol=1e-4)
    hidden, cache = int8.cached(ids[:, :7], int8.empty_cache(2, 16))
    rest, _ = int8.cached(ids[:, 7:], cache)
    assert jnp.allclose(jnp.concatenate([hidden, rest], axis=1), int8(ids), atol=1e-4)


def test_logits_are_close(model):
    ids = jnp.arange(60).reshape(2, 30)
    error = logit_error(model.logits(model(ids)), quantized(model).logits(quantized(model)(ids)))
    assert 0 < error.rms < 0.05 * error.spread and error.same > 0.8
    assert "the same at" in str(error)


def test_codes_and_scales_are_sharded_like_their_weights(model):
    mesh = make_mesh(MeshConfig(replica=1, fsdp=2, tensor=2), jax.devices()[:4])
    sharded_first = quantized(jax.device_put(model, shardings(model, mesh)))
    sharded_last = jax.device_put(quantized(model), shardings(quantized(model), mesh))
    assert sharded_last.blocks.mlp.gate.scale[...].sharding.spec == jax.sharding.PartitionSpec(None, "tensor")
    assert sharded_last.blocks.mlp.down.codes[...].sharding.spec == jax.sharding.PartitionSpec(None, "tensor", "fsdp")
    pairs = zip(jax.tree.leaves(sharded_first), jax.tree.leaves(sharded_last), strict=True)
    assert all((a == b).all() for a, b in pairs)


def test_consume_deletes_the_matrices_that_became_int8():
    model = Chameleon(CFG, nnx.Rngs(0))
    gate, norm = model.blocks.mlp.gate[...], model.norm.scale[...]
    quantized(model)
    assert not gate.is_deleted()
    quantized(model, consume=True)
    assert gate.is_deleted() and not norm.is_deleted()

"""The kernels for TPU, interpreted, equal the plain definitions: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.parts import QKNorm, rotary, rotate
from lumina_jax.model.rotation import norm_rotate, whole_angles
from lumina_jax.model.splash import LANES, LARGEST_BLOCK, blocks
from lumina_jax.sharding import make_mesh, shardings


def draw(seed: int, *shape: int, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype)


@pytest.mark.smoke
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 4e-3)])
def test_the_rotation_kernel_is_norm_and_rotation(dtype, tolerance):
    """Two groups of two heads: values, and gradients by input, scale and bias, against float32 arithmetic.

    Errors are relative to the largest number of each array; in bfloat16 only the rounding of results is allowed.
    """
    B, T, H, K, G = 2, 128, 4, 16, 2
    x, change = 3 * draw(0, B, T, H, K, dtype=dtype) + 1, draw(1, B, T, H, K, dtype=dtype)
    weights = 1 + 0.3 * draw(2, G, K, dtype=dtype), draw(3, G, K, dtype=dtype)
    angles = rotary(jnp.asarray(np.random.default_rng(4).integers(0, 500, (B, T))), K, 1e4, dtype)

    def plain(x, scale, bias):
        norm = QKNorm(G, K)
        norm.scale, norm.bias = norm.scale.replace(scale), norm.bias.replace(bias)
        return rotate(norm(x), *(x.astype(jnp.float32) for x in angles))

    def kernel(x, scale, bias):
        return norm_rotate(x.reshape(B, T, H * K), scale, bias, *whole_angles(*angles), True).swapaxes(1, 2)

    value, kernel_pull = jax.vjp(kernel, x, *weights)
    exact, pull = jax.vjp(plain, *(array.astype(jnp.float32) for array in (x, *weights)))
    for ours, theirs in zip((value, *kernel_pull(change)), (exact, *pull(change.astype(jnp.float32))), strict=True):
        assert ours.dtype == dtype
        ours = np.asarray(ours, np.float32)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def small(**changes) -> ModelConfig:
    sizes = dict(vocab=62, width=32, layers=1, heads=4, kv_heads=2, head_dim=16, mlp=48, qk_groups=2, dropout=0.0)
    return ModelConfig(**{**sizes, **changes})


def packed(B: int, T: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ids, positions and segments i32[B T] of rows of two samples and padding."""
    rng, slot = np.random.default_rng([B, T]), np.arange(T)
    cut, end = rng.integers(1, T - 1, (B, 1)), rng.integers(T - 1, T + 1, (B, 1))
    segments = np.where(slot < cut, 1, np.where(slot < end, 2, 0))
    positions = np.where(segments == 2, slot - cut, slot)
    return tuple(jnp.asarray(x, jnp.int32) for x in (rng.integers(0, 62, (B, T)), positions, segments))


def outcome(model: Chameleon, rows, attention: str):
    """Hidden states, and the gradient by all weights of a scalar function of them."""

    def number(model):
        hidden = model(*rows, attention=attention, remat="qkv")
        return jnp.sum(jnp.sin(hidden) * jnp.arange(hidden.size).reshape(hidden.shape) / hidden.size), hidden

    grads, hidden = jax.jit(jax.grad(number, has_aux=True))(model)
    return hidden, *jax.tree.leaves(grads)


def assert_close(ours, theirs) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize(
    ("T", "changes"),
    [(20, {}), (128, dict(kv_heads=4, qk_groups=1)), (300, dict(kv_heads=1, qk_groups=4, post_norm=True))],
    ids=["padded", "whole", "padded past a block"],
)
def test_splash_attention_is_plain_attention(T, changes):
    """Segments, shared key/value heads, lengths with and without a block that divides them."""
    model, rows = Chameleon(small(**changes), nnx.Rngs(0)), packed(2, T)
    model = jax.tree.map(lambda w: w + 0.1 * draw(w.size, *w.shape), model)
    assert_close(outcome(model, rows, "splash"), outcome(model, rows, "plain"))


def test_splash_attention_splits_over_rows_and_heads():
    """With the heads of one group over two devices and rows over four, results are those of one device."""
    model, rows = Chameleon(small(kv_heads=2, qk_groups=1), nnx.Rngs(0)), packed(4, 20)
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        split = outcome(jax.device_put(model, shardings(model, mesh)), rows, "splash")
    assert_close(split, outcome(model, rows, "plain"))


def test_blocks_are_multiples_of_the_lanes_and_cover_every_token():
    for T in (1, 128, 200, 1152, 1280, 2560, 4228, 4352, 4608):
        block, length = blocks(T)
        assert block % LANES == length % block == 0 and block <= LARGEST_BLOCK and T <= length < T + block
    assert blocks(1280) == (640, 1280) and blocks(2560) == (640, 2560) and blocks(4608) == (768, 4608)

"""The kernels for TPU, interpreted, equal the plain definitions: values and gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.model import splash
from lumina_jax.model.attention import attend, causal_mask
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.flash import LANES, Tiles, flash_attend
from lumina_jax.model.parts import QKNorm, rotary, rotate
from lumina_jax.model.rotation import norm_rotate, whole_angles
from lumina_jax.model.splash import WIDE, WIDE_LARGEST_BLOCK, logit_bound, tiles
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
        return norm_rotate(x.reshape(B, T, H * K), scale, bias, *whole_angles(*angles), True).reshape(B, T, H, K)

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


def rotated(H: int, N: int, T: int, size: float = 1.0, dtype=jnp.float32) -> list[jax.Array]:
    """Query [1 H T K], key and value [1 N T K] and a change of the output; numbers of query and key are of ``size``."""
    arrays = [draw(n, 1, heads, T, 16) for n, heads in enumerate((H, N, N, H))]
    return [(x * scale).astype(dtype) for x, scale in zip(arrays, (size, size, 1, 1), strict=True)]


def flash_outcome(arrays: list[jax.Array], segments: jax.Array, bound: float, forward: Tiles, backward: Tiles):
    """Output and gradients by query, key and value of flash attention, whose logits are those of plain attention times log2(e)."""
    *heads, change = arrays
    factor = heads[0].shape[-1] ** -0.5 * math.log2(math.e)

    def attend_flash(query, key, value):
        limits = jnp.full(query.shape[1], bound, jnp.float32)
        columns = (
            x.swapaxes(1, 2).reshape(1, x.shape[2], -1) for x in ((query * factor).astype(query.dtype), key, value)
        )
        mixed = flash_attend(*columns, segments, limits, forward, backward, True)
        return splash.heads_apart(mixed, query.shape[-1])

    value, pull = jax.vjp(attend_flash, *heads)
    return value, *pull(change)


def plain_outcome(arrays: list[jax.Array], segments: jax.Array):
    """The same of plain attention, in float32."""
    *heads, change = (x.astype(jnp.float32) for x in arrays)
    mask = causal_mask(segments.shape[1], segments)
    value, pull = jax.vjp(lambda q, k, v: attend(q.swapaxes(1, 2), k, v, mask).swapaxes(1, 2), *heads)
    return value, *pull(change)


def assert_near(ours, theirs, tolerance: float) -> None:
    """Errors are relative to the largest number of each array."""
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize(
    ("heads", "dtype", "tolerance"),
    [((2, 2), jnp.float32, 1e-5), ((8, 1), jnp.float32, 1e-5), ((2, 1), jnp.bfloat16, 2e-2)],
    ids=["as many key heads", "eight query heads to a key head", "bfloat16"],
)
def test_flash_attention_is_plain_attention(heads, dtype, tolerance):
    """Values and gradients, with different blocks forward and backward, strips that divide no block, three segments."""
    T = 768
    segments = jnp.asarray(np.searchsorted([300, 700], np.arange(T)[None], "right"), jnp.int32)
    arrays = rotated(*heads, T, dtype=dtype)
    ours = flash_outcome(arrays, segments, 99.0, Tiles(768, 256), Tiles(384, 256))
    assert_near(ours, plain_outcome(arrays, segments), tolerance)


def test_flash_attention_finds_the_maximum_of_logits_without_a_small_bound():
    """Logits of some hundreds, whose powers no float32 holds; blocks that share no segment are skipped."""
    segments = jnp.asarray(np.arange(512)[None] // 200, jnp.int32)
    arrays = rotated(2, 1, 512, size=10)
    tiles = Tiles(128, 128)
    assert_near(flash_outcome(arrays, segments, np.inf, tiles, tiles), plain_outcome(arrays, segments), 1e-4)
    assert not np.isfinite(flash_outcome(arrays, segments, 0.0, tiles, tiles)[0]).all()  # a bound that does not hold


def test_the_bound_of_logits_holds_and_is_reached():
    """For random tokens, and for a token whose normed vector has all its length in the channel of the largest scale."""
    K, H, N = 16, 4, 2
    rows = [jnp.abs(draw(n, 2, K)) for n in range(4)]
    norms = [x * (n % 2 == 0) for n, x in enumerate(rows)]
    bound = logit_bound((*norms[:2], *(x[:1] for x in norms[2:])), H)
    assert bound.shape == (H,) and bound[0] == bound[1]
    peaks = [jnp.max(x, -1) for x in norms]
    np.testing.assert_allclose(bound, jnp.repeat(peaks[0] * peaks[2][0] * K, H // N) * (1 + 2**-6), rtol=1e-6)
    biased = logit_bound(tuple(rows), H)
    tokens = [x - x.mean(-1, keepdims=True) for x in (draw(5, 300, K), draw(6, 300, K))]
    normed = [x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + QKNorm.EPS) for x in tokens]
    for head in range(H):
        q, k = (normed[n] * rows[2 * n][head // N] + rows[2 * n + 1][head // N] for n in range(2))
        assert jnp.abs(q @ k.T).max() <= biased[head]


def test_rows_longer_than_vmem_take_splash_attention(monkeypatch):
    model, rows = Chameleon(small(), nnx.Rngs(0)), packed(2, 20)
    monkeypatch.setattr(splash, "LONGEST", 0)
    assert_close(outcome(model, rows, "splash"), outcome(model, rows, "plain"))


def test_splash_attention_splits_over_rows_and_heads():
    """With the heads of one group over two devices and rows over four, results are those of one device."""
    model, rows = Chameleon(small(kv_heads=2, qk_groups=1), nnx.Rngs(0)), packed(4, 20)
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        split = outcome(jax.device_put(model, shardings(model, mesh)), rows, "splash")
    assert_close(split, outcome(model, rows, "plain"))


@pytest.mark.parametrize("kind", ["TPU v5", *WIDE])
def test_blocks_are_multiples_of_the_lanes_and_cover_every_token(kind):
    for T in (1, 128, 200, 1152, 1280, 2560, 4228, 4352, 4608, 5120):
        forward, backward, length = tiles(T, kind)
        for block, strip in (forward, backward):
            assert block % LANES == strip % LANES == length % block == 0 and block <= WIDE_LARGEST_BLOCK
        assert T <= length < T + backward.block
    assert tiles(1280, kind)[1].block == tiles(2560, kind)[1].block == 640

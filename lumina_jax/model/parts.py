"""Norms, rotary positions, SwiGLU and dropout: the pieces of a block (original: modeling_chameleon.py)."""

import jax
import jax.numpy as jnp
from flax import nnx

from lumina_jax.model.params import ones, zeros
from lumina_jax.sharding import ROWS, axis_size, per_device

Angles = tuple[jax.Array, jax.Array]
"""Cosine and sine [B T 1 K/2] by which each pair of a head's numbers is rotated."""


class RMSNorm(nnx.Module):
    """Root-mean-square norm over D: normalised in float32, scaled in the dtype of the input."""

    def __init__(self, D: int, eps: float):
        self.scale = ones(D=D)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B T D] -> [B T D]."""
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * self.scale[...]


class QKNorm(nnx.Module):
    """LayerNorm of each head's query or key over K, with one scale and bias per group of heads (paper section 3.1).

    torch stored one row per tensor-parallel shard, hence groups; consecutive heads share a row.
    """

    EPS = 1e-5

    def __init__(self, G: int, K: int):
        self.scale = ones(G=G, K=K)
        self.bias = zeros(G=G, K=K)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B T H K] -> [B T H K]; H a multiple of G."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.EPS)
        heads_per_group = x.shape[-2] // self.scale.shape[0]
        scale, bias = (jnp.repeat(p[...], heads_per_group, axis=0) for p in (self.scale, self.bias))
        return normed.astype(x.dtype) * scale + bias


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up, [B T F] -> [B T F]."""
    return jax.nn.silu(gate) * up


def rotary(positions: jax.Array, K: int, base: float, dtype: jnp.dtype) -> Angles:
    """The angles of positions i32[B T], computed in float32 and cast to ``dtype`` as the original does."""
    return cos_sin(positions, frequencies(K, base), dtype)


def frequencies(K: int, base: float) -> jax.Array:
    """f32[K/2]: by how much each pair of a head turns per position, in radians."""
    return base ** (-jnp.arange(0, K, 2, dtype=jnp.float32) / K)


def cos_sin(positions: jax.Array, frequencies: jax.Array, dtype: jnp.dtype) -> Angles:
    """Cosine and sine [... 1 K/2] of positions i32[...] times frequencies f32[K/2]."""
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + K/2) of x [B T H K] by their angles."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def select(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [T V], index i32[T 1] -> [T 1]: the entry of each row at its index, 0 where the index lies outside of V."""
    return jnp.sum(jnp.where(jnp.arange(x.shape[-1]) == index, x, 0), -1, keepdims=True)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, rng: str = "global") -> jax.Array:
    """Zeroes a share ``rate`` of x [B T D] and scales the rest by 1 / (1 - rate); without a key, returns x.

    ``rng`` "global" draws the same mask on every mesh, "local" lets each device draw for its own rows (:func:`keep_local`).
    """
    if key is None or rate == 0:
        return x
    keep = keep_local(key, rate, x.shape) if rng == "local" else jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def keep_local(key: jax.Array, rate: float, shape: tuple[int, int, int]) -> jax.Array:
    """bool[B T D], False with probability ``rate``: every device draws one byte for each entry of its own rows.

    A byte is compared with a limit of 0 to 256, too coarse for most rates: each channel draws whether its limit is rounded up or
    down, so that the mean over channels is the rate.
    """
    B, T, D = shape
    rows = B // (axis_size("replica") * axis_size("fsdp"))

    def draw(key: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(key)
        if axis_size("replica") * axis_size("fsdp") > 1:
            key = jax.random.fold_in(key, jax.lax.axis_index(ROWS))
        fast = jax.random.key_data(jax.random.split(key)).reshape(4)
        return jax.random.bits(jax.random.wrap_key_data(fast, impl="rbg"), (rows, T, D), jnp.uint8)

    bits = per_device(draw, ("",), "BTD")(jax.random.key_data(key))
    limit = jnp.floor(256 * rate + jax.random.uniform(key, (D,)))
    return bits >= limit.astype(jnp.uint8)

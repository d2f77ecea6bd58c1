"""Norms, rotary positions, dropout and the gated MLP: the pieces of a block (original: modeling_chameleon.py)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lumina_jax.model.int8 import Scaled
from lumina_jax.model.params import ones, weight, zeros
from lumina_jax.sharding import ROWS, per_device, platform, size_of


class RMSNorm(nnx.Module):
    """Root-mean-square norm over D: normalised in float32, scaled in the dtype of the input."""

    def __init__(self, D: int, eps: float):
        self.scale = ones(D=D)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * self.scale[...]


class QKNorm(nnx.Module):
    """LayerNorm of each head's query or key over K, with one scale and bias per group of heads (paper section 2.1).

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
        share = x.shape[-2] // self.scale.shape[0]
        scale, bias = (jnp.repeat(p[...], share, axis=0) for p in (self.scale, self.bias))
        return normed.astype(x.dtype) * scale + bias


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, D: int, F: int, rngs: nnx.Rngs):
        self.gate = weight(rngs, D=D, F=F)
        self.up = weight(rngs, D=D, F=F)
        self.down = weight(rngs, F=F, D=D)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B T D] -> [B T D]."""
        gate = checkpoint_name(product("BTD,DF->BTF", x, self.gate[...]), "gate")
        up = checkpoint_name(product("BTD,DF->BTF", x, self.up[...]), "up")
        return product("BTF,FD->BTD", swiglu(gate, up), self.down[...])


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up. On CPUs the gradient finds no more than these two and takes the sigmoid from them again."""
    return _swiglu(gate, up) if platform() == "cpu" else jax.nn.silu(gate) * up


@jax.custom_vjp
def _swiglu(gate, up):
    return jax.nn.silu(gate) * up


def _swiglu_gradient(given, change):
    gate, up = given
    share = 0.5 + 0.5 * jnp.tanh(0.5 * gate)  # the sigmoid in other words, or XLA would keep that of the forward pass
    return change * up * share * (1 + gate * (1 - share)), change * gate * share


_swiglu.defvjp(lambda gate, up: (_swiglu(gate, up), (gate, up)), _swiglu_gradient)


def product(letters: str, x: jax.Array, w: jax.Array | Scaled) -> jax.Array:
    """``jnp.einsum(letters, x, w)`` of activations and a weight whose first axes are the last of x.

    An int8 weight is scaled behind the sum. CPUs get the others as a product of two matrices: XLA's gradients of any other
    transpose whole activations there.
    """
    if isinstance(w, Scaled):
        inputs, weights, outputs = letters.replace("->", ",").split(",")
        channels = "".join(letter for letter in weights if letter not in inputs)
        given = product(letters, x, w.codes.astype(x.dtype))
        return jnp.einsum(f"{outputs},{channels}->{outputs}", given, w.scale).astype(x.dtype)
    if platform() != "cpu":
        return jnp.einsum(letters, x, w)
    inputs, weights, outputs = letters.replace("->", ",").split(",")
    n = sum(letter in inputs for letter in weights)
    rows, columns = x.shape[:-n], w.shape[n:]
    given = x.reshape(math.prod(rows), -1) @ w.reshape(-1, math.prod(columns))
    return jnp.einsum(f"{inputs[:-n]}{weights[n:]}->{outputs}", given.reshape(rows + columns))


def rotary(positions: jax.Array, K: int, base: float, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine [B T 1 K/2] of positions i32[B T], computed in float32 and cast to ``dtype`` as the original does."""
    frequencies = base ** (-jnp.arange(0, K, 2, dtype=jnp.float32) / K)

    def turn(positions):
        angles = positions[..., None, None].astype(jnp.float32) * frequencies
        return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)

    if platform() != "cpu" or positions.shape[1] == 1:
        return turn(positions)
    # A loop over T: XLA would take cosine and sine of the same angle again wherever a number is rotated by it.
    cos, sin = jax.lax.map(turn, positions.T)
    return cos.swapaxes(0, 1), sin.swapaxes(0, 1)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + K/2) of x [B T H K] by their angles."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, rng: str = "global") -> jax.Array:
    """Zeroes a share ``rate`` of x [B T D] and scales the rest up; without a key, returns x.

    ``rng`` "global" draws the same mask on every mesh, "local" lets each device draw for its own rows (:func:`keep_local`).
    """
    if key is None or rate == 0:
        return x
    keep = keep_local(key, rate, x.shape) if rng == "local" else jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def keep_local(key: jax.Array, rate: float, shape: tuple[int, int, int]) -> jax.Array:
    """bool[B T D], False with probability ``rate``: every device draws one byte for each number of its own rows.

    A byte is too coarse for most rates, so each channel draws whether its share is the 256th part above or below.
    """
    B, T, D = shape
    rows = B // (size_of("replica") * size_of("fsdp"))

    def draw(key):
        key = jax.random.wrap_key_data(key)
        if size_of("replica") * size_of("fsdp") > 1:
            key = jax.random.fold_in(key, jax.lax.axis_index(ROWS))
        fast = jax.random.key_data(jax.random.split(key)).reshape(4)
        return jax.random.bits(jax.random.wrap_key_data(fast, impl="rbg"), (rows, T, D), jnp.uint8)

    bits = per_device(draw, ("",), "BTD")(jax.random.key_data(key))
    limit = jnp.floor(256 * rate + jax.random.uniform(key, (D,)))
    return bits >= limit.astype(jnp.uint8)

"""QK-norm and rotary positions in one pass over queries or keys: a Pallas kernel for TPU, and its backward pass.

XLA makes several trips to memory of this, in float32 and in halves of 64 lanes. The kernel reads and writes each number once, in
its own dtype, and computes in float32 registers. Sums and swaps across lanes are products with constant matrices: the matrix unit
is idle here, and the unit that moves lanes is slow. Equals ``rotate(QKNorm(x))`` of parts.py.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lumina_jax.model.parts import QKNorm

TOKENS = (512, 256, 128)
"""Tokens of one grid step of the kernel: the first of these that divides T."""
HEADS = 8
"""The most heads of one grid step."""
ROWS = 128
"""Tokens that share one load of a constant matrix into the matrix unit: with 32 the kernel takes three times as long on v6e."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def norm_rotate(
    x: jax.Array, scale: jax.Array, bias: jax.Array, cos: jax.Array, sin: jax.Array, interpret: bool = False
) -> jax.Array:
    """[B T HK], heads side by side, -> the same: normalised over K, scaled and shifted by the row of each head's group, rotated.

    ``scale`` and ``bias`` are [G K], consecutive heads share a row; ``cos`` and ``sin`` [B T K] hold each angle twice
    (:func:`whole_angles`) and get no gradient. T must be a multiple of 128 and, on a TPU, K too.
    """
    return _forward(x, scale, bias, cos, sin, interpret)


def whole_angles(cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine [B T 1 K/2] of parts.rotary -> [B T K], each repeated for both halves; the first sine is negated."""
    cos, sin = cos[:, :, 0], sin[:, :, 0]
    return jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)


class _Blocks(NamedTuple):
    """How [B T HK] is cut: a grid step takes some tokens of one row, for some heads of one group."""

    grid: tuple[int, int, int]
    columns: pl.BlockSpec
    weights: pl.BlockSpec
    angles: pl.BlockSpec
    matrix: pl.BlockSpec
    sums: pl.BlockSpec

    @classmethod
    def of(cls, B: int, H: int, T: int, K: int, groups: int) -> "_Blocks":
        t = next(size for size in TOKENS if T % size == 0)
        heads_per_group = H // groups
        h = math.gcd(heads_per_group, HEADS)
        return cls(
            grid=(B, T // t, H // h),
            columns=pl.BlockSpec((None, t, h * K), lambda b, i, j: (b, i, j)),
            weights=pl.BlockSpec((None, 1, K), lambda b, i, j: (jax.lax.div(j, heads_per_group // h), 0, 0)),
            angles=pl.BlockSpec((None, t, K), lambda b, i, j: (b, i, 0)),
            matrix=pl.BlockSpec((K, K), lambda b, i, j: (0, 0)),
            sums=pl.BlockSpec((None, None, None, 8, K), lambda b, i, j: (b, i, j, 0, 0)),
        )


def _matrices(K: int, dtype: jnp.dtype) -> tuple[jax.Array, ...]:
    """[K K] each, exact in bfloat16: subtract the mean; subtract the mean and swap the halves; swap the halves; take the mean."""
    eye, mean = np.eye(K), np.full((K, K), 1 / K)
    swapped = np.roll(eye, K // 2, 1)
    return tuple(jnp.asarray(m, dtype) for m in (eye - mean, swapped - mean, swapped, mean))


def _forward(x, scale, bias, cos, sin, interpret):
    (B, T, columns), (G, K) = x.shape, scale.shape
    specs = _Blocks.of(B, columns // K, T, K, G)
    centre, centre_swap, _, mean = _matrices(K, x.dtype)
    return pl.pallas_call(
        _forward_kernel,
        grid=specs.grid,
        in_specs=[specs.columns, specs.weights, specs.weights, specs.angles, specs.angles, *[specs.matrix] * 3],
        out_specs=specs.columns,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3),
        interpret=interpret,
        name="norm_rotate",
    )(x, scale[:, None], bias[:, None], cos, sin, centre, centre_swap, mean)


def _save(x, scale, bias, cos, sin, interpret):
    return _forward(x, scale, bias, cos, sin, interpret), (x, scale, cos, sin)


def _backward(interpret, saved, change):
    x, scale, cos, sin = saved
    (B, T, columns), (G, K) = x.shape, scale.shape
    specs = _Blocks.of(B, columns // K, T, K, G)
    centre, _, swap, mean = _matrices(K, x.dtype)
    sums = jax.ShapeDtypeStruct((*specs.grid, 8, K), jnp.float32)
    dx, dscale, dbias = pl.pallas_call(
        _backward_kernel,
        grid=specs.grid,
        in_specs=[specs.columns, specs.columns, specs.weights, specs.angles, specs.angles, *[specs.matrix] * 3],
        out_specs=[specs.columns, specs.sums, specs.sums],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), sums, sums],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3),
        interpret=interpret,
        name="norm_rotate_bwd",
    )(change, x, scale[:, None], cos, sin, centre, swap, mean)
    dscale, dbias = (x.reshape(B, specs.grid[1], G, -1, K).sum((0, 1, 3)).astype(scale.dtype) for x in (dscale, dbias))
    return dx, dscale, dbias, jnp.zeros_like(cos), jnp.zeros_like(sin)


norm_rotate.defvjp(_save, _backward)


def _forward_kernel(x, scale, bias, cos, sin, centre, centre_swap, mean, out):
    tokens, K = cos.shape
    wide, shift = scale[...].astype(jnp.float32), bias[...].astype(jnp.float32)
    wide_swap, shift_swap = _swap(wide), _swap(shift)

    def rotate_rows(step, _):
        rows = pl.ds(pl.multiple_of(step * ROWS, ROWS), ROWS)
        c, s = cos[rows].astype(jnp.float32), sin[rows].astype(jnp.float32)
        straight, crossed, offset = wide * c, wide_swap * s, shift * c + shift_swap * s
        for columns in _heads(x, K):
            head = x[rows, columns]
            centred = _dot(head, centre[...])
            turned = centred * straight + _dot(head, centre_swap[...]) * crossed
            out[rows, columns] = (turned * _inverse_deviation(centred, mean[...]) + offset).astype(out.dtype)

    jax.lax.fori_loop(0, tokens // ROWS, rotate_rows, None)


def _backward_kernel(change, x, scale, cos, sin, centre, swap, mean, dx, dscale, dbias):
    tokens, K = cos.shape
    wide = scale[...].astype(jnp.float32)
    dscale[...], dbias[...] = jnp.zeros(dscale.shape, jnp.float32), jnp.zeros(dbias.shape, jnp.float32)

    def add_rows(step, _):
        rows = pl.ds(pl.multiple_of(step * ROWS, ROWS), ROWS)
        c, s = cos[rows].astype(jnp.float32), -sin[rows].astype(jnp.float32)
        for columns in _heads(x, K):
            centred = _dot(x[rows, columns], centre[...])
            inverse = _inverse_deviation(centred, mean[...])
            normed = centred * inverse
            dy = change[rows, columns].astype(jnp.float32) * c + _dot(change[rows, columns], swap[...]) * s
            dscale[...] += (dy * normed).reshape(-1, 8, K).sum(0)
            dbias[...] += dy.reshape(-1, 8, K).sum(0)
            dn = dy * wide
            along = _dot((dn * normed).astype(x.dtype), mean[...])
            dn = dn - _dot(dn.astype(x.dtype), mean[...]) - normed * along
            dx[rows, columns] = (dn * inverse).astype(dx.dtype)

    jax.lax.fori_loop(0, tokens // ROWS, add_rows, None)


def _heads(x, K: int) -> list[pl.Slice]:
    """The columns of each head of x [t hK]."""
    return [pl.ds(start, K) for start in range(0, x.shape[1], K)]


def _dot(a, matrix):
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, matrix, preferred_element_type=jnp.float32, precision=exact)


def _inverse_deviation(centred, mean):
    """1 / sqrt(variance + eps) in every lane. The matrix unit takes the squares as the sum of two bfloat16 of 8 bits each."""
    squares = centred * centred
    high = squares.astype(mean.dtype)
    low = (squares - high.astype(jnp.float32)).astype(mean.dtype)
    return jax.lax.rsqrt(_dot(high, mean) + _dot(low, mean) + QKNorm.EPS)


def _swap(x):
    """[1 K] with its halves exchanged."""
    return pltpu.roll(x, x.shape[-1] // 2, 1)

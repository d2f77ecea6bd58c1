"""Attention of some new tokens to a cache on TPU: a Pallas kernel, each device on its own rows and heads.

64 queries of 32 heads on 5,120 slots have scores of 42 MB a row, which XLA writes to memory and reads twice, more than the cache
itself. The kernel keeps the scores of a block of slots on the chip and corrects earlier sums for a larger maximum (online softmax,
arXiv 1805.02867). It reads the blocks that hold a slot that a row sees, and no others.

With 64 queries a head it is bound by memory: for a row and 8 heads the compiler emits 3,300 bundles on v5p and 1.2 more for each
slot (libtpu 0.0.48.1), which for 5,120 slots of two rows is 22 us a layer, where reading them takes 61.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lumina_jax.model import attention
from lumina_jax.model.attention import Int8Slots, KeyValue, KVCache, Order, Reaches, Slots, earlier_tokens
from lumina_jax.sharding import device_kind, per_device, platform

LANES = 128
LEAST_TOKENS = 8
"""Of fewer new tokens the scores are small, and XLA's plain products read the cache at the speed of memory."""
BLOCKS = (1024, 640, 512, 384, 256, 128)
"""Slots of a grid step: the first of these that divides those of the cache."""
HEADS = 8
"""The most key/value heads of a grid step."""
REFUSED = ("TPU7x",)
"""Kinds of TPU whose compiler aborts on a decoding loop with the kernel in it (libtpu 0.0.48.1)."""
HIDDEN = -1e30
"""The score of a slot that is not seen; minus infinity would give NaN where a block holds no other."""


def suits(T: int, cache: KVCache) -> bool:
    """Whether the kernel attends from ``T`` new tokens to a stacked ``cache``."""
    if device_kind() in REFUSED:
        return False
    *_, S, K = jax.tree.leaves(cache.keys)[0].shape
    return T >= LEAST_TOKENS and S > 0 and S % LANES == 0 and K % LANES == 0


def reaches(T: int, cache: KVCache, reaches: Reaches) -> Reaches:
    """The cache lengths to compile :func:`attend_past` for: one where the kernel finds the filled slots by itself."""
    return None if suits(T, cache) and (reaches is None or any(reaches)) else reaches


def attend_past(
    query: jax.Array, past: KVCache, new: KeyValue, layer: jax.Array | None, order: Order, reach: int
) -> jax.Array:
    """:func:`attention.attend_past`: by the kernel where it suits and the whole cache is in reach. Off TPU it is interpreted."""
    B, T = query.shape[:2]
    if layer is None or not suits(T, past) or reach < jax.tree.leaves(past.keys)[0].shape[3]:
        return attention.attend_past(query, past, new, layer, order, reach)
    length, start = (jnp.broadcast_to(x, B) for x in (past.length, past.visible_from))
    hidden = jnp.where(earlier_tokens(order, length[:, None, None], start[:, None, None]), 0.0, HIDDEN)
    letters = {5: "LBNSK", 4: "LBNS"}
    cached = jax.tree.leaves((past.keys, past.values))
    arrays = [layer.reshape(1), start, length, query, *(_exact(x, query.dtype) for x in new), hidden, *cached]
    attend = functools.partial(_attend, interpret=platform() != "tpu")
    return per_device(
        attend, ("", "B", "B", "BTHK", "BNTK", "BNTK", "BTS", *(letters[x.ndim] for x in cached)), "BTHK"
    )(*arrays)


def _exact(new: Slots, dtype: jnp.dtype) -> jax.Array:
    """Keys or values of new tokens as numbers of ``dtype``; int8 ones are what the cache will hold, rounded to it."""
    if not isinstance(new, Int8Slots):
        return new
    return new.codes.astype(dtype) * new.scale.astype(dtype)[..., None]


def _attend(layer, start, length, query, key, value, hidden, *cached, interpret: bool):
    """On one device: query [B T H K], key and value [B N T K], ``hidden`` f32[B T T] is added to their scores -> [B T H K].

    ``layer`` i32[1] of the cache is read, slots ``start`` to ``length - 1`` i32[B] of each row.
    """
    B, T, H, K = query.shape
    N, S = cached[0].shape[2:4]
    block, heads, rows = next(size for size in BLOCKS if S % size == 0), math.gcd(N, HEADS), H // N * T
    grouped = query.reshape(B, T, N, H // N, K).transpose(0, 2, 3, 1, 4).reshape(B, N, rows, K)
    hidden = jnp.tile(hidden, (1, H // N, 1))
    first = start // block
    last = jnp.maximum(length - 1, 0) // block

    def slots(b, n, s, layer, start, length, first, last):
        return layer[0], b, n, jnp.clip(s, first[b], jnp.maximum(last[b], first[b])), 0

    def of_row(b, n, s, *_):
        return b, n, 0, 0

    specs = {
        5: pl.BlockSpec((None, None, heads, block, K), slots),
        4: pl.BlockSpec((None, None, heads, block), lambda *indices: slots(*indices)[:4]),
    }
    per_row = pl.BlockSpec((None, heads, rows, K), of_row)
    per_new = pl.BlockSpec((None, heads, T, K), of_row)
    whole = pl.BlockSpec((None, rows, T), lambda b, n, s, *_: (b, 0, 0))
    mixed = pl.pallas_call(
        functools.partial(_kernel, is_int8=len(cached) == 4),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(B, N // heads, S // block),
            in_specs=[per_row, per_new, per_new, whole, *(specs[x.ndim] for x in cached)],
            out_specs=per_row,
            scratch_shapes=[pltpu.VMEM((heads, rows, size), jnp.float32) for size in (LANES, LANES, K)],
        ),
        out_shape=jax.ShapeDtypeStruct(grouped.shape, query.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="cached_attention",
    )(layer, start, length, first, last, grouped, key, value, hidden, *cached)
    return mixed.reshape(B, N, H // N, T, K).transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def _kernel(_, start, length, first, last, query, new_key, new_value, hidden, *refs, is_int8: bool):
    """Adds a block of slots to the sums of some heads of a row; the new tokens are added before the first."""
    *cached, out, largest, total, mixed = refs
    row, step = pl.program_id(0), pl.program_id(2)
    heads, _, K = query.shape
    scale = K**-0.5

    @pl.when(step == 0)
    def _():
        for head in range(heads):
            scores = _dot(query[head], new_key[head], 1) * scale + hidden[...]
            top = jnp.max(scores, axis=1, keepdims=True)
            weights = jnp.exp(scores - top)
            largest[head] = jnp.broadcast_to(top, largest.shape[1:])
            total[head] = jnp.broadcast_to(jnp.sum(weights, axis=1, keepdims=True), total.shape[1:])
            mixed[head] = _dot(weights.astype(new_value.dtype), new_value[head], 0)

    @pl.when((step >= first[row]) & (step <= last[row]))
    def _():
        keys, *scales = cached[:2] if is_int8 else cached[:1]
        values, *value_scales = cached[2:] if is_int8 else cached[1:]
        block = keys.shape[1]
        slot = step * block + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1)
        unseen = jnp.where((slot >= start[row]) & (slot < length[row]), 0.0, HIDDEN)
        for head in range(heads):
            scores = _dot(query[head], keys[head].astype(query.dtype), 1) * scale
            if is_int8:
                scores *= scales[0][head][None].astype(jnp.float32)
            scores += unseen
            before = largest[head]
            top = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
            shrunk, weights = jnp.exp(before - top), jnp.exp(scores - top[:, :1])
            largest[head] = top
            total[head] = total[head] * shrunk + jnp.sum(weights, axis=1, keepdims=True)
            if is_int8:
                weights *= value_scales[0][head][None].astype(jnp.float32)
            added = _dot(weights.astype(query.dtype), values[head].astype(query.dtype), 0)
            mixed[head] = mixed[head] * shrunk[:, :1] + added

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        for head in range(heads):
            out[head] = (mixed[head] / total[head][:, :1]).astype(out.dtype)


def _dot(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """f32: a [n m] times b, summed over ``axis`` of b."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, (((1,), (axis,)), ((), ())), precision=exact, preferred_element_type=jnp.float32)

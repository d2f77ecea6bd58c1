"""Causal attention within segments as two Pallas kernels for TPU, forward and backward, without a running maximum.

Attention with heads of 128 is bound by the vector unit wherever scores leave their registers. Here a grid step is a whole head: its
queries, keys and values lie in VMEM, and loops inside it visit the blocks of scores on and under the diagonal. Only what a block
needs is computed:

- Logits are base 2 (the caller scales queries by log2(e)), so that a weight is one power, which no multiplication precedes.
- The caller names a bound of the logits' size. QK-norm gives one from its weights. Up to ``LIMIT`` no power leaves float32's
  range and softmax needs no maximum; a head beyond it finds the maximum of each row in a pass of its own.
- Blocks whose queries and keys share no segment are skipped, and of the block on the diagonal what lies above it.
- The backward kernel computes transposed scores, keys by queries: numbers of a query (normaliser, product of output and change)
  are then rows, which cost nothing to repeat, and sums over queries are plain products. Gradients by queries are summed in VMEM.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
LIMIT = 100.0
"""The largest bound of base-2 logits without a maximum: 8,192 weights of 2**100 sum to less than float32's 2**128, and a row whose
largest weight is 2**-100 keeps all its bits above 2**-126."""
HIDDEN = -1e30
"""Logit of a pair that the mask hides; its power is 0 whatever is subtracted."""
NT, TN = (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))


class Tiles(NamedTuple):
    """How a kernel cuts scores: square blocks of ``block`` tokens, those on the diagonal into strips of ``strip`` tokens."""

    block: int
    strip: int

    def strips(self) -> list[tuple[int, int]]:
        """First token and size of each strip; the last may be smaller."""
        return [(start, min(self.strip, self.block - start)) for start in range(0, self.block, self.strip)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def flash_attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    bound: jax.Array,
    forward: Tiles,
    backward: Tiles,
    interpret: bool = False,
) -> jax.Array:
    """query [B T HK], key and value [B T NK] -> [B T HK]: softmax in base 2 over earlier tokens of the same segment.

    Heads lie side by side; a grid step cuts out its own. ``segments`` are i32[B T]. ``bound`` f32[H] is at least the absolute value
    of every logit of a head, in base 2; it decides only how the softmax is computed, and any number (infinity too) is safe as long
    as that holds. T must be a multiple of both blocks.
    """
    return _forward(query, key, value, segments, bound, forward, interpret)[0]


def _save(query, key, value, segments, bound, forward, backward, interpret):
    out, normaliser = _forward(query, key, value, segments, bound, forward, interpret)
    out, normaliser = checkpoint_name(out, "mixed"), checkpoint_name(normaliser[:, :, 0], "mixed")
    return out, (query, key, value, segments, out, normaliser)


def _forward(query, key, value, segments, bound, tiles, interpret):
    """-> (output [B T HK], log2 of each row's sum of weights f32[B H 1 T])."""
    (B, T, columns), H = query.shape, len(bound)
    K, group = columns // H, columns // key.shape[2]
    head = pl.BlockSpec((None, T, K), lambda b, h, *_: (b, 0, h))
    shared = pl.BlockSpec((None, T, K), lambda b, h, *_: (b, 0, jax.lax.div(h, group)))
    row = pl.BlockSpec((None, None, 1, T), lambda b, h, *_: (b, h, 0, 0))
    return pl.pallas_call(
        functools.partial(_forward_kernel, tiles=tiles),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, H),
            in_specs=[head, shared, shared, *_segment_specs(T)],
            out_specs=[head, row],
            scratch_shapes=[pltpu.VMEM((tiles.block, width), jnp.float32) for width in (LANES, LANES, K)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((B, H, 1, T), jnp.float32),
        ],
        compiler_params=_compiler_params(("parallel", "parallel"), T, K, query.dtype, 4, 0),
        interpret=interpret,
        name=f"flash_fwd_{tiles.block}_{tiles.strip}",
    )(*_ranges(segments, tiles.block), bound, query, key, value, *_sides(segments))


def _backward(forward, backward, interpret, saved, change):
    query, key, value, segments, out, normaliser = saved
    B, H, T = normaliser.shape
    K, group = query.shape[2] // H, query.shape[2] // key.shape[2]
    head = pl.BlockSpec((None, T, K), lambda b, n, g, *_: (b, 0, n * group + g))
    shared = pl.BlockSpec((None, T, K), lambda b, n, g, *_: (b, 0, n))
    row = pl.BlockSpec((None, None, 1, T), lambda b, n, g, *_: (b, n * group + g, 0, 0))
    dq, dk, dv = pl.pallas_call(
        functools.partial(_backward_kernel, tiles=backward, group=group),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, H // group, group),
            in_specs=[head, shared, shared, head, head, row, *_segment_specs(T)],
            out_specs=[head, shared, shared],
            scratch_shapes=[*[pltpu.VMEM((T, K), jnp.float32)] * 3, pltpu.VMEM((1, T), jnp.float32)],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)],
        compiler_params=_compiler_params(("parallel", "parallel", "arbitrary"), T, K, query.dtype, 8, 3),
        interpret=interpret,
        name=f"flash_bwd_{backward.block}_{backward.strip}",
    )(*_ranges(segments, backward.block), query, key, value, out, change, normaliser[:, :, None], *_sides(segments))
    return dq, dk, dv, None, None


flash_attend.defvjp(_save, _backward)


def _compiler_params(semantics, T: int, K: int, dtype, arrays: int, sums: int):
    """VMEM for ``arrays`` [T K] of ``dtype``, twice each, ``sums`` of float32, segments, and what a block of scores spills."""
    held = T * K * (2 * arrays * jnp.dtype(dtype).itemsize + 4 * sums) + 2 * 4 * T * LANES
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=held + 16 * 2**20)


def _ranges(segments: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest segment of each block, i32[B T/block]: blocks whose ranges are apart share none."""
    blocks = segments.reshape(len(segments), -1, block)
    return blocks.min(-1), blocks.max(-1)


def _sides(segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Segments i32[B T] as columns [B T LANES] and as rows [B 1 T]."""
    return jnp.broadcast_to(segments[..., None], (*segments.shape, LANES)), segments[:, None]


def _segment_specs(T: int) -> tuple[pl.BlockSpec, pl.BlockSpec]:
    return (
        pl.BlockSpec((None, T, LANES), lambda b, *_: (b, 0, 0)),
        pl.BlockSpec((None, 1, T), lambda b, *_: (b, 0, 0)),
    )


def _forward_kernel(low, high, bound, q, k, v, columns, row, out, normaliser, largest, total, mixed, *, tiles: Tiles):
    block, batch, blocks = tiles.block, pl.program_id(0), q.shape[0] // tiles.block
    bounded = bound[pl.program_id(1)] <= LIMIT

    def scores(queries, keys, diagonal: bool):
        """Logits [queries keys], those hidden by the mask HIDDEN."""
        logits = _dot(q[queries], k[keys], NT)
        return _masked(logits, columns[queries], row[:, keys], diagonal)

    def find_largest(within, queries, keys, diagonal):
        largest[within] = jnp.maximum(largest[within], _lanes(scores(queries, keys, diagonal), jnp.maximum))

    def add(within, queries, keys, diagonal):
        shift = largest[within]
        logits = scores(queries, keys, diagonal)
        weights = jnp.exp2(logits - jnp.tile(shift, (1, logits.shape[1] // LANES)))
        total[within] += _lanes(weights, jnp.add)
        mixed[within] += _dot(weights.astype(v.dtype), v[keys])

    def visit(i, run):
        """Runs ``run`` for every part of the scores of query block i."""

        def before(j, _):
            @pl.when((low[batch, i] <= high[batch, j]) & (low[batch, j] <= high[batch, i]))
            def _():
                run(pl.ds(0, block), _at(i, block), _at(j, block), False)

        jax.lax.fori_loop(0, i, before, None)
        for start, size in tiles.strips():
            run(pl.ds(start, size), _at(i, block, start, size), _at(i, block, 0, start + size), True)

    def query_block(i, _):
        largest[...], total[...], mixed[...] = (jnp.zeros(x.shape, jnp.float32) for x in (largest, total, mixed))

        @pl.when(jnp.logical_not(bounded))
        def _():
            largest[...] = jnp.full(largest.shape, HIDDEN, jnp.float32)
            visit(i, find_largest)
            largest[...] = jnp.broadcast_to(jnp.max(largest[...], -1, keepdims=True), largest.shape)

        visit(i, add)
        weight = jnp.broadcast_to(jnp.sum(total[...], -1, keepdims=True), total.shape)
        out[_at(i, block)] = (mixed[...] / weight[:, : mixed.shape[1]]).astype(out.dtype)
        normaliser[:, _at(i, block)] = (jnp.log2(weight) + largest[...]).T[:1]

    jax.lax.fori_loop(0, blocks, query_block, None)


def _backward_kernel(
    low,
    high,
    q,
    k,
    v,
    out,
    change,
    normaliser,
    columns,
    row,
    dq,
    dk,
    dv,
    q_sum,
    k_sum,
    v_sum,
    along,
    *,
    tiles: Tiles,
    group: int,
):
    block, batch, member, blocks = tiles.block, pl.program_id(0), pl.program_id(2), q.shape[0] // tiles.block

    @pl.when(member == 0)
    def _():
        k_sum[...], v_sum[...] = jnp.zeros(k_sum.shape, jnp.float32), jnp.zeros(v_sum.shape, jnp.float32)

    def start(i, _):
        rows = _at(i, block)
        q_sum[rows] = jnp.zeros((block, q_sum.shape[1]), jnp.float32)
        along[:, rows] = _row_sums(out[rows].astype(jnp.float32) * change[rows].astype(jnp.float32))

    def add(keys, queries, diagonal: bool):
        logits = _masked(_dot(k[keys], q[queries], NT), columns[keys], row[:, queries], diagonal, True)
        weights = jnp.exp2(logits - normaliser[:, queries])
        v_sum[keys] += _dot(weights.astype(v.dtype), change[queries])
        steps = (weights * (_dot(v[keys], change[queries], NT) - along[:, queries])).astype(q.dtype)
        k_sum[keys] += _dot(steps, q[queries])
        q_sum[queries] += _dot(steps, k[keys], TN)

    def key_block(j, _):
        for start, size in tiles.strips():
            add(_at(j, block, start, size), _at(j, block, start, block - start), True)

        def behind(i, _):
            @pl.when((low[batch, i] <= high[batch, j]) & (low[batch, j] <= high[batch, i]))
            def _():
                add(_at(j, block), _at(i, block), False)

        jax.lax.fori_loop(j + 1, blocks, behind, None)

    def finish(i, _):
        dq[_at(i, block)] = (q_sum[_at(i, block)] * math.log(2)).astype(dq.dtype)

    def finish_shared(i, _):
        dk[_at(i, block)] = (k_sum[_at(i, block)] * math.log(2)).astype(dk.dtype)
        dv[_at(i, block)] = v_sum[_at(i, block)].astype(dv.dtype)

    jax.lax.fori_loop(0, blocks, start, None)
    jax.lax.fori_loop(0, blocks, key_block, None)
    jax.lax.fori_loop(0, blocks, finish, None)

    @pl.when(member == group - 1)
    def _():
        jax.lax.fori_loop(0, blocks, finish_shared, None)


def _at(i, block: int, start: int = 0, size: int | None = None):
    """The ``size`` tokens from ``start`` on of block i (default: all)."""
    return pl.ds(pl.multiple_of(i * block + start, LANES), block if size is None else size)


def _masked(logits, columns, row, diagonal: bool, transposed: bool = False):
    """HIDDEN where segments differ and, on the diagonal, where the key is behind the query.

    ``columns`` i32[n LANES] and ``row`` i32[1 m] are the segments of the rows and of the columns of logits [n m]. The square that
    the diagonal crosses is the last of a strip of queries, the first of a strip of keys (``transposed``).
    """
    mask = jnp.tile(columns, (1, logits.shape[1] // LANES)) == row
    if diagonal:
        first = 0 if transposed else logits.shape[1] - len(logits)
        rows, cols = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
        cols = cols - first
        mask &= rows <= cols if transposed else cols <= rows
    return jnp.where(mask, logits, HIDDEN)


def _lanes(x, combine):
    """[n m] -> [n LANES]: the columns of every LANES-th lane combined."""
    return functools.reduce(combine, [x[:, i : i + LANES] for i in range(0, x.shape[1], LANES)])


def _row_sums(x):
    """f32[n m] -> f32[1 n]: the sum over m as a row. The matrix unit takes each number as the sum of two bfloat16 of 8 bits."""
    high = x.astype(jnp.bfloat16)
    low = (x - high.astype(jnp.float32)).astype(jnp.bfloat16)
    ones = jnp.ones((8, x.shape[1]), jnp.bfloat16)
    return (_dot(ones, high, NT) + _dot(ones, low, NT))[:1]


def _dot(a, b, dims=(((1,), (0,)), ((), ()))):
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32, precision=exact)

"""Forms of the model's functions that run faster on a CPU. Each equals its plain definition, but for rounding.

backend.py chooses between the two.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lumina_jax.model import attention, parts
from lumina_jax.model.attention import KeyValue, KVCache, Order, Reaches
from lumina_jax.model.parts import Angles

MIN_BLOCK, MAX_BLOCKS = 64, 8
"""The fewest queries in a block of attention, and the most blocks of a sequence: each block takes time to compile."""

SINGLE_DEVICE_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
"""Compiler options of a train step. A step begins by getting fresh pages from the system, which takes up to a tenth of it: a
program that needs less memory is faster. Several devices keep the usual schedule: eight of them aborted under load with this one,
waiting for each other in collectives."""


def einsum(letters: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """``jnp.einsum(letters, x, w)`` as one matrix product, where the first axes of w are the last of x.

    The gradients that XLA derives from any other form transpose whole activations.
    """
    inputs, weights, outputs = letters.replace("->", ",").split(",")
    n = sum(letter in inputs for letter in weights)
    rows, columns = x.shape[:-n], w.shape[n:]
    matrix = x.reshape(math.prod(rows), -1) @ w.reshape(-1, math.prod(columns))
    return jnp.einsum(f"{inputs[:-n]}{weights[n:]}->{outputs}", matrix.reshape(rows + columns))


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up. The backward pass keeps only gate and up and recomputes the sigmoid."""
    return parts.swiglu(gate, up)


def _swiglu_gradient(saved, change):
    gate, up = saved
    sigmoid = 0.5 + 0.5 * jnp.tanh(0.5 * gate)  # XLA would recognise jax.nn.sigmoid and keep that of the forward pass
    return change * up * sigmoid * (1 + gate * (1 - sigmoid)), change * gate * sigmoid


swiglu.defvjp(lambda gate, up: (swiglu(gate, up), (gate, up)), _swiglu_gradient)


def rotary(positions: jax.Array, K: int, base: float, dtype: jnp.dtype) -> Angles:
    """:func:`parts.rotary` in a loop over T, or XLA would compute an angle's sine and cosine again wherever it is used."""
    if positions.shape[1] == 1:
        return parts.rotary(positions, K, base, dtype)
    frequencies = parts.frequencies(K, base)
    cos, sin = jax.lax.map(lambda position: parts.cos_sin(position, frequencies, dtype), positions.T)
    return cos.swapaxes(0, 1), sin.swapaxes(0, 1)


def attend_causal(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """:func:`attention.attend` for a mask bool[B T T] (or [1 T T]) that hides all later keys from a query.

    A block of queries meets only the keys up to its end, which saves half of the work, and its scores are recomputed by the
    backward pass: what is worked on stays in the processor's cache.
    """
    T = query.shape[1]
    size = max(MIN_BLOCK, -(-T // MAX_BLOCKS))
    spans = [(start, min(start + size, T)) for start in range(0, T, size)]
    attend = jax.checkpoint(attention.attend)
    blocks = [attend(query[:, a:b], key[:, :, :b], value[:, :, :b], mask[:, a:b, :b]) for a, b in spans]
    return jnp.concatenate(blocks, axis=1)


def attend_past(
    query: jax.Array, past: KVCache, new: KeyValue, layer: jax.Array | None, order: Order, reach: int
) -> jax.Array:
    """:func:`attention.attend_past`; the sum over slots keeps its own order of axes: another one takes four times as long."""
    mixed = sum(
        jnp.einsum("BNhTS,BNSK->BNhTK", shares, value, preferred_element_type=jnp.float32)
        for shares, value in attention.past_shares(query, past, new, layer, order, reach)
    )
    return jnp.einsum("BNhTK->BTNhK", mixed).astype(query.dtype).reshape(query.shape)


def write_slots(cache: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """:func:`attention.write_slots` row by row. For all rows at once XLA copies the cache, which trebles a pass of 16 rows."""
    if start.ndim == 0:
        return attention.write_slots(cache, new, start)
    new = new.astype(cache.dtype)

    def write_row(row: jax.Array, cache: jax.Array) -> jax.Array:
        change = jax.lax.dynamic_slice_in_dim(new, row, 1, axis=1)
        return jax.lax.dynamic_update_slice(cache, change, (0, row, 0, start[row], 0)[: cache.ndim])

    return jax.lax.fori_loop(0, len(start), write_row, cache)


def run_unstacked(
    blocks: Sequence[nnx.Module], x: jax.Array, angles: Angles, cache: KVCache, reaches: Reaches, order: Order
) -> tuple[jax.Array, KVCache]:
    """:meth:`Chameleon.scan_cached` over an unstacked cache and ``blocks`` that are arrays of their own; attends to all slots.

    CPUs copy what a scan cuts out of stacked arrays for a layer, its weights and its part of the cache, before they use it.
    """
    new = []
    for block, keys, values in zip(blocks, cache.keys, cache.values, strict=True):
        past = cache._replace(keys=keys, values=values)

        def mix(attention: nnx.Module, x: jax.Array, past: KVCache = past):
            query, key, value = attention.project(x, angles)
            new = cache.stored(key, value)
            return attend_past(query, past, new, None, order, jax.tree.leaves(past.keys)[0].shape[2]), new

        x, key_value = block(x, mix)
        new.append(key_value)
    # Nothing is added to the length, but XLA cannot know: it copies a cache that could be written before it was read.
    length = cache.length + (x[:, 0, 0] * 0 != 0)

    def write(layer: jax.Array, change: jax.Array) -> jax.Array:
        return write_slots(layer[None], change[None], length)[0]

    keys, values = jax.tree.map(write, (cache.keys, cache.values), tuple(zip(*new, strict=True)))
    return x, cache._replace(keys=keys, values=values)


def select(x: jax.Array, index: jax.Array) -> jax.Array:
    """:func:`parts.select` as a lookup, not a sum over all of V."""
    inside = (index >= 0) & (index < x.shape[-1])
    return jnp.where(inside, jnp.take_along_axis(x, jnp.where(inside, index, 0), -1), 0)

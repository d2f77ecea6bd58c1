"""Causal softmax attention, over whole sequences or over a cache of keys and values: the mathematics, without weights.

cpu.py and splash.py hold forms of these functions that are faster on one kind of device.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.sharding import ROWS, axis_size

KeyValue = tuple[jax.Array, jax.Array]
"""Key and value of some tokens, [B N T K] each."""
Reaches = Sequence[int] | None
"""Candidate cache lengths, descending: attention uses the smallest that covers the filled slots. None: it uses all slots."""


LANES = 128
BLOCK_SCORES = 2**22
"""Scores in a block of :func:`attend_past_in_blocks`, on one device: 16 MiB, an eighth to a quarter of on-chip memory."""


class Order(NamedTuple):
    """New tokens that are no chain: ``depth`` i32[T] counts the tokens before each, and ``ancestors`` bool[T T] says which they are.

    A token is its own ancestor. The i-th takes the i-th slot behind the cache, but its position is that of its depth.
    """

    depth: np.ndarray
    ancestors: np.ndarray

    @classmethod
    def of_chain(cls, T: int) -> "Order":
        return cls(np.arange(T), np.tri(T, dtype=bool))


class KVCache(NamedTuple):
    """Keys and values of every layer, filled from slot 0. Short prompts are padded on the left.

    ``keys`` and ``values`` are [L B N S K], the order in which a decoding step reads them, or L of [B N S K] (:meth:`unstack`);
    ``length`` is the number of filled slots, i32[] while all rows have the same, else i32[B]. ``visible_from`` i32[B] is the
    first slot that a row attends to, and its positions are counted from there: it hides padding, and it hides the prompt from
    the unconditional row of a guided pair.
    """

    keys: jax.Array | tuple[jax.Array, ...]
    values: jax.Array | tuple[jax.Array, ...]
    length: jax.Array
    visible_from: jax.Array

    def unstack(self) -> "KVCache":
        """The same with an array for each layer."""
        return self._replace(keys=tuple(self.keys), values=tuple(self.values))

    def stack(self) -> "KVCache":
        """The inverse of :meth:`unstack`; a stacked cache stays as it is."""
        if isinstance(self.keys, jax.Array):
            return self
        return self._replace(keys=jnp.stack(self.keys), values=jnp.stack(self.values))


def causal_mask(T: int, segments: jax.Array | None) -> jax.Array:
    """bool[B T T] ([1 T T] without segments): a token attends to itself and to earlier tokens of its own segment."""
    mask = jnp.tril(jnp.ones((1, T, T), bool))
    if segments is None:
        return mask
    return mask & (segments[:, :, None] == segments[:, None, :])


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention: query [B T H K], key and value [B N S K], mask bool[B T S] (or [1 T S]) -> [B T H K].

    Each of the N key/value heads serves H/N query heads. Scores and softmax are float32; the mask must leave every query at
    least one slot.
    """
    B, T, H, K = query.shape
    N = key.shape[1]
    grouped = query.reshape(B, T, N, H // N, K)
    scores = jnp.einsum("BTNhK,BNSK->BNhTS", grouped, key, preferred_element_type=jnp.float32) * K**-0.5
    shares = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -jnp.inf), axis=-1).astype(value.dtype)
    return jnp.einsum("BNhTS,BNSK->BTNhK", shares, value).reshape(B, T, H, K)


def attend_past(
    query: jax.Array, past: KVCache, new: KeyValue, layer: jax.Array | None, order: Order, reach: int
) -> jax.Array:
    """:func:`attend` to a layer of the cache and, behind it, to the key and value [B N T K] of the T new tokens: -> [B T H K].

    Arguments as of :func:`past_shares`.
    """
    mixed = sum(
        jnp.einsum("BNhTS,BNSK->BTNhK", shares, value, preferred_element_type=jnp.float32)
        for shares, value in past_shares(query, past, new, layer, order, reach)
    )
    return mixed.astype(query.dtype).reshape(query.shape)


def attend_past_in_blocks(
    query: jax.Array, past: KVCache, new: KeyValue, layer: jax.Array | None, order: Order, reach: int
) -> jax.Array:
    """:func:`attend_past`, some slots of the cache at a time, so that scores stay in on-chip memory.

    64 queries of 32 heads on 5,120 slots have scores of 42 MB a row, which a TPU would write to its memory and read twice: more
    than the cache itself. Each block of slots corrects the sums of those before it for its larger maximum (online softmax,
    arXiv 1805.02867). The last block overlaps the one before where blocks do not divide ``reach``.
    """
    B, T, H, K = query.shape
    block = _block(B * T * H, reach)
    if block >= reach:
        return attend_past(query, past, new, layer, order, reach)
    N = new[0].shape[1]
    grouped = query.reshape(B, T, N, H // N, K)
    length, start = (jnp.broadcast_to(x, B)[:, None, None] for x in (past.length, past.visible_from))

    def scored(key: jax.Array, mask: jax.Array) -> jax.Array:
        scores = jnp.einsum("BTNhK,BNSK->BNhTS", grouped, key, preferred_element_type=jnp.float32) * K**-0.5
        return jnp.where(mask[:, None, None], scores, -jnp.inf)

    def add(sums: Sums, key: jax.Array, value: jax.Array, mask: jax.Array) -> Sums:
        scores = scored(key, mask)
        largest = jnp.maximum(sums.largest, jnp.max(scores, axis=-1, keepdims=True))
        shrunk, weights = jnp.exp(sums.largest - largest), jnp.exp(scores - largest)
        mixed = jnp.einsum("BNhTS,BNSK->BNhTK", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return Sums(largest, sums.total * shrunk + jnp.sum(weights, -1, keepdims=True), sums.mixed * shrunk + mixed)

    def add_block(index: jax.Array, sums: Sums) -> Sums:
        first = jnp.minimum(index * block, reach - block)
        slots = first + jnp.arange(block)
        key, value = (_block_of(x, layer, first, block) for x in (past.keys, past.values))
        return add(sums, key, value, (slots < length) & (slots >= start) & (slots >= index * block))

    shape = (B, N, H // N, T)
    # A token sees itself, so the maximum is finite from the first block on.
    none = Sums(jnp.full((*shape, 1), -jnp.inf), jnp.zeros((*shape, 1)), jnp.zeros((*shape, K)))
    sums = jax.lax.fori_loop(0, -(-reach // block), add_block, add(none, *new, earlier_tokens(order, length, start)))
    return jnp.einsum("BNhTK->BTNhK", sums.mixed / sums.total).astype(query.dtype).reshape(query.shape)


class Sums(NamedTuple):
    """Of some slots: the largest score [B N h T 1], and sums of exp(score - largest), alone and times values [B N h T K]."""

    largest: jax.Array
    total: jax.Array
    mixed: jax.Array


def _block(queries: int, reach: int) -> int:
    """How many slots are attended to at a time by ``queries`` (rows, tokens and heads) of all devices."""
    queries //= math.prod(axis_size(axis) for axis in (*ROWS, "tensor"))
    return max(LANES, BLOCK_SCORES // max(queries, 1) // LANES * LANES)


def _block_of(cached: jax.Array, layer: jax.Array | None, first: jax.Array, block: int) -> jax.Array:
    """[B N block K]: the slots from ``first`` on of a layer of keys or values (:func:`past_shares` has both forms)."""
    if layer is None:
        return jax.lax.dynamic_slice_in_dim(cached, first, block, axis=2)
    _, B, N, _, K = cached.shape
    return jax.lax.dynamic_slice(cached, (layer, 0, 0, first, 0), (1, B, N, block, K))[0]


def earlier_tokens(order: Order, length: jax.Array, start: jax.Array) -> jax.Array:
    """bool[B T T]: the new tokens that each new token attends to: those before it that its row sees, and itself.

    ``length`` and ``start`` i32[B 1 1] are the filled slots of each row, and the first that it sees.
    """
    return order.ancestors & (length + order.depth >= start) | np.eye(len(order.depth), dtype=bool)


def past_shares(
    query: jax.Array, past: KVCache, new: KeyValue, layer: jax.Array | None, order: Order, reach: int
) -> list[tuple[jax.Array, jax.Array]]:
    """Pairs of (softmax weights [B N h T S], values [B N S K]), of the new tokens and of the cache; S is T, then ``reach``.

    ``query`` is [B T H K], ``new`` the key and value [B N T K]. Only the first ``reach`` slots of the cache are read: of its
    ``layer`` i32[], or of the one layer that ``past`` holds when that is None. A token attends to the filled slots that its
    row sees, to the new tokens before it (``order``) that its row sees, and always to itself. The softmax is float32 and over all of these.
    """
    B, T, H, K = query.shape
    N = new[0].shape[1]
    grouped = query.reshape(B, T, N, H // N, K)
    length, start = (jnp.broadcast_to(x, B)[:, None, None] for x in (past.length, past.visible_from))
    slots = jnp.arange(reach)
    sources = [(*new, earlier_tokens(order, length, start))]
    if reach:
        cached = [past.keys, past.values]
        if layer is not None:
            cached = [jax.lax.dynamic_slice(x, (layer, 0, 0, 0, 0), (1, B, N, reach, K))[0] for x in cached]
        sources.append((*cached, (slots < length) & (slots >= start)))

    def score(key: jax.Array, mask: jax.Array) -> jax.Array:
        scores = jnp.einsum("BTNhK,BNSK->BNhTS", grouped, key, preferred_element_type=jnp.float32) * K**-0.5
        return jnp.where(mask[:, None, None], scores, -jnp.inf)

    scores = [score(key, mask) for key, _, mask in sources]
    largest = functools.reduce(jnp.maximum, [jnp.max(x, axis=-1, keepdims=True) for x in scores])
    exponentials = [jnp.exp(x - largest) for x in scores]
    total = sum(jnp.sum(x, axis=-1, keepdims=True) for x in exponentials)
    return [((x / total).astype(value.dtype), value) for x, (_, value, _) in zip(exponentials, sources, strict=True)]


def write_slots(cache: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Keys or values [L B N S K] with ``new`` [L B N T K] in the T slots from ``start`` (i32[], or i32[B]) on.

    XLA writes in place where the cache is donated or carried by a loop.
    """
    new = new.astype(cache.dtype)
    if start.ndim == 0:
        return jax.lax.dynamic_update_slice(cache, new, (0, 0, 0, start, 0))

    def write_row(row: jax.Array, change: jax.Array, slot: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(row, change, (0, 0, slot, 0))

    return jax.vmap(write_row, (1, 1, 0), 1)(cache, new, start)


def take_slots(cache: KVCache, sources: jax.Array, start: jax.Array) -> KVCache:
    """The cache with its slots i32[B n] ``sources`` copied to the n slots from ``start`` i32[B] on; unstacked or not."""

    def copy(layer: jax.Array) -> jax.Array:
        """[B N S K]."""
        taken = jax.vmap(lambda row, slots: row[:, slots])(layer, sources)
        return jax.vmap(lambda row, change, slot: jax.lax.dynamic_update_slice(row, change, (0, slot, 0)))(
            layer, taken, start
        )

    if isinstance(cache.keys, tuple):
        return cache._replace(keys=tuple(map(copy, cache.keys)), values=tuple(map(copy, cache.values)))
    keys, values = (jax.vmap(copy)(x) for x in (cache.keys, cache.values))
    return cache._replace(keys=keys, values=values)

"""Causal softmax attention, over whole sequences or over a cache of keys and values: the mathematics, without weights.

cpu.py and splash.py hold forms of these functions that are faster on one kind of device.
"""

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Int8Slots(NamedTuple):
    """Keys or values in int8: ``codes`` i8[... S K] times ``scale`` bf16[... S], one for each token and head."""

    codes: jax.Array
    scale: jax.Array


Slots = jax.Array | Int8Slots
"""Keys or values [... S K], exact or in int8."""
KeyValue = tuple[Slots, Slots]
"""Key and value of some tokens, [B N T K] each."""
Reaches = Sequence[int] | None
"""Candidate cache lengths, descending: attention uses the smallest that covers the filled slots. None: it uses all slots."""


def same_reaches(T: int, cache: "KVCache", reaches: Reaches) -> Reaches:
    """``reaches``, for attention of ``T`` new tokens that is compiled for each."""
    return reaches


class Order(NamedTuple):
    """How new tokens stand: ``depth`` i32[T] counts those before each, and ``ancestors`` bool[T T] says which they are.

    A token is its own ancestor. The i-th takes the i-th slot behind the cache, but its position is that of its depth.
    """

    depth: np.ndarray
    ancestors: np.ndarray

    @classmethod
    def of_chain(cls, T: int) -> "Order":
        return cls(np.arange(T), np.tri(T, dtype=bool))


class KVCache(NamedTuple):
    """Keys and values of every layer, filled from slot 0. Short prompts are padded on the left.

    ``keys`` and ``values`` are [L B N S K], the order in which a decoding step reads them, or L of [B N S K] (:meth:`unstack`),
    exact or in int8;
    ``length`` is the number of filled slots, i32[] while all rows have the same, else i32[B]. ``visible_from`` i32[B] is the
    first slot that a row attends to, and its positions are counted from there: it hides padding, and it hides the prompt from
    the unconditional row of a guided pair.
    """

    keys: Slots | tuple[Slots, ...]
    values: Slots | tuple[Slots, ...]
    length: jax.Array
    visible_from: jax.Array

    @property
    def is_unstacked(self) -> bool:
        return type(self.keys) is tuple

    def unstack(self) -> "KVCache":
        """The same with arrays for each layer."""
        layers = range(len(jax.tree.leaves(self.keys)[0]))
        keys, values = (
            tuple(jax.tree.map(operator.itemgetter(layer), slots) for layer in layers)
            for slots in (self.keys, self.values)
        )
        return self._replace(keys=keys, values=values)

    def stack(self) -> "KVCache":
        """The inverse of :meth:`unstack`; a stacked cache stays as it is."""
        if not self.is_unstacked:
            return self
        keys, values = (jax.tree.map(lambda *x: jnp.stack(x), *layers) for layers in (self.keys, self.values))
        return self._replace(keys=keys, values=values)

    def stored(self, *new: jax.Array) -> tuple[Slots, ...]:
        """Keys or values [B N T K] of new tokens in the form in which this cache holds them.

        New tokens are attended to in this form as well: what a token sees depends on no pass.
        """
        is_int8 = isinstance(self.keys[0] if self.is_unstacked else self.keys, Int8Slots)
        return tuple(map(quantize_slots, new)) if is_int8 else new


def quantize_slots(x: jax.Array) -> Int8Slots:
    """Keys or values [... S K] in int8: the largest number of a slot becomes 127 or -127, so none errs by more than 1/250 of it."""
    wide = x.astype(jnp.float32)
    scale = (jnp.max(jnp.abs(wide), axis=-1) / 127).astype(jnp.bfloat16)
    steps = wide / jnp.where(scale == 0, 1, scale).astype(jnp.float32)[..., None]
    return Int8Slots(jnp.clip(jnp.round(steps), -127, 127).astype(jnp.int8), scale)


def _scores(query: jax.Array, key: Slots) -> jax.Array:
    """f32[B N h T S] of query [B T N h K] and key [B N S K]."""
    codes, scale = key if isinstance(key, Int8Slots) else (key, None)
    codes = codes.astype(query.dtype)
    scores = jnp.einsum("BTNhK,BNSK->BNhTS", query, codes, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    return scores if scale is None else scores * scale.astype(jnp.float32)[:, :, None, None]


def _weights(shares: jax.Array, value: Slots, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """(weights [B N h T S], values [B N S K]) of ``dtype`` whose products sum to f32 ``shares`` of ``value``."""
    if isinstance(value, Int8Slots):
        shares, value = shares * value.scale.astype(jnp.float32)[:, :, None, None], value.codes.astype(dtype)
    return shares.astype(value.dtype), value


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


def _block_of(cached: Slots, layer: jax.Array | None, first: jax.Array | int, block: int) -> Slots:
    """[B N block K]: the slots from ``first`` on of a layer of keys or values (:func:`past_shares` has both forms)."""

    def cut(x: jax.Array) -> jax.Array:
        if layer is None:
            return jax.lax.dynamic_slice_in_dim(x, first, block, axis=2)
        starts = (layer, 0, 0, first, 0)[: x.ndim]
        return jax.lax.dynamic_slice(x, starts, (1, *x.shape[1:3], block, *x.shape[4:]))[0]

    return jax.tree.map(cut, cached)


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
    row sees, to those new tokens before it (``order``), and always to itself. The softmax over all of these is float32.
    """
    B, T, H, K = query.shape
    N = jax.tree.leaves(new)[0].shape[1]
    grouped = query.reshape(B, T, N, H // N, K)
    length, start = (jnp.broadcast_to(x, B)[:, None, None] for x in (past.length, past.visible_from))
    slots = jnp.arange(reach)
    sources = [(*new, earlier_tokens(order, length, start))]
    if reach:
        cached = (past.keys, past.values) if layer is None else (_block_of(x, layer, 0, reach) for x in past[:2])
        sources.append((*cached, (slots < length) & (slots >= start)))
    scores = [jnp.where(mask[:, None, None], _scores(grouped, key), -jnp.inf) for key, _, mask in sources]
    largest = functools.reduce(jnp.maximum, [jnp.max(x, axis=-1, keepdims=True) for x in scores])
    exponentials = [jnp.exp(x - largest) for x in scores]
    total = sum(jnp.sum(x, axis=-1, keepdims=True) for x in exponentials)
    return [_weights(x / total, value, query.dtype) for x, (_, value, _) in zip(exponentials, sources, strict=True)]


def write_slots(cache: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Keys or values [L B N S K], or scales [L B N S], with ``new`` ones in the T slots from ``start`` (i32[], or i32[B]) on.

    XLA writes in place where the cache is donated or carried by a loop.
    """
    new = new.astype(cache.dtype)
    if start.ndim == 0:
        return jax.lax.dynamic_update_slice(cache, new, (0, 0, 0, start, 0)[: cache.ndim])

    def write_row(row: jax.Array, change: jax.Array, slot: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(row, change, (0, 0, slot, 0)[: row.ndim])

    return jax.vmap(write_row, (1, 1, 0), 1)(cache, new, start)


def take_slots(cache: KVCache, sources: jax.Array, start: jax.Array) -> KVCache:
    """The cache with its slots i32[B n] ``sources`` copied to the n slots from ``start`` i32[B] on; unstacked or not."""

    def copy(layer: jax.Array) -> jax.Array:
        """[B N S ...]."""

        def write_row(row: jax.Array, slots: jax.Array, slot: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(row, row[:, slots], (0, slot, 0)[: row.ndim])

        return jax.vmap(write_row)(layer, sources, start)

    keys, values = jax.tree.map(copy if cache.is_unstacked else jax.vmap(copy), (cache.keys, cache.values))
    return cache._replace(keys=keys, values=values)

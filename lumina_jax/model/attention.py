"""Causal softmax attention, over whole sequences or over a cache of keys and values: the mathematics, without weights.

cpu.py and splash.py hold forms of these functions that are faster on one kind of device.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

KeyValue = tuple[jax.Array, jax.Array]
"""Key and value of some tokens, [B N T K] each."""
Reaches = Sequence[int] | None
"""Candidate cache lengths, descending: attention uses the smallest that covers the filled slots. None: it uses all slots."""


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


def attend_past(query: jax.Array, past: KVCache, new: KeyValue, layer: jax.Array | None, reach: int) -> jax.Array:
    """:func:`attend` to a layer of the cache and, behind it, to the key and value [B N T K] of the T new tokens: -> [B T H K].

    Arguments as of :func:`past_shares`.
    """
    mixed = sum(
        jnp.einsum("BNhTS,BNSK->BTNhK", shares, value, preferred_element_type=jnp.float32)
        for shares, value in past_shares(query, past, new, layer, reach)
    )
    return mixed.astype(query.dtype).reshape(query.shape)


def past_shares(
    query: jax.Array, past: KVCache, new: KeyValue, layer: jax.Array | None, reach: int
) -> list[tuple[jax.Array, jax.Array]]:
    """Pairs of (softmax weights [B N h T S], values [B N S K]), of the new tokens and of the cache; S is T, then ``reach``.

    ``query`` is [B T H K], ``new`` the key and value [B N T K]. Only the first ``reach`` slots of the cache are read: of its
    ``layer`` i32[], or of the one layer that ``past`` holds when that is None. A token attends to the filled slots that its
    row sees, to the new tokens before it that its row sees, and always to itself. The softmax is float32 and over all of these.
    """
    B, T, H, K = query.shape
    N = new[0].shape[1]
    grouped = query.reshape(B, T, N, H // N, K)
    length, start = (jnp.broadcast_to(x, B)[:, None, None] for x in (past.length, past.visible_from))
    row, slots = jnp.arange(T), jnp.arange(reach)
    earlier = (row <= row[:, None]) & (length + row >= start) | (row == row[:, None])
    sources = [(*new, earlier)]
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

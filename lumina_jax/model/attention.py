"""Causal attention with QK-norm and rotary positions, over whole sequences or over a cache."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lumina_jax.config import ModelConfig
from lumina_jax.model.params import weight
from lumina_jax.model.parts import QKNorm, product, rotate
from lumina_jax.sharding import platform

BLOCK, BLOCKS = 64, 8
"""The fewest queries in a block of attention on a CPU, and the most blocks: each takes time to compile."""


class KVCache(NamedTuple):
    """Keys and values of every layer, filled from slot 0. Short prompts are padded on the left.

    ``keys`` and ``values`` are [L B N S K], the order in which a decoding step reads them, or L of [B N S K] (:meth:`apart`);
    ``length`` is the number of filled slots, i32[] while all rows are equally far, else i32[B]; ``visible_from`` i32[B] is the
    first slot a row may see, and its positions are counted from there: padding stays hidden, and so does the prompt from the
    unconditional row of a guided pair.
    """

    keys: jax.Array | tuple[jax.Array, ...]
    values: jax.Array | tuple[jax.Array, ...]
    length: jax.Array
    visible_from: jax.Array

    def apart(self) -> "KVCache":
        """The layers one by one: CPUs copy what is cut out of a larger array."""
        return self._replace(keys=tuple(self.keys), values=tuple(self.values))

    def together(self) -> "KVCache":
        """The inverse of :meth:`apart`."""
        return self._replace(keys=jnp.stack(self.keys), values=jnp.stack(self.values))


class Attention(nnx.Module):
    """Grouped-query attention: H query heads share N key/value heads."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        D, H, N, K = cfg.width, cfg.heads, cfg.kv_heads, cfg.head_dim
        self.wq = weight(rngs, D=D, H=H, K=K)
        self.wk = weight(rngs, D=D, N=N, K=K)
        self.wv = weight(rngs, D=D, N=N, K=K)
        self.wo = weight(rngs, fan_in="HK", H=H, K=K, D=D)
        self.q_norm = QKNorm(cfg.qk_groups, K)
        self.k_norm = QKNorm(min(cfg.qk_groups, N), K)

    def heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B T D] -> query [B H T K], key and value [B N T K], as the matrices give them."""
        query = product("BTD,DHK->BHTK", x, self.wq[...])
        key = product("BTD,DNK->BNTK", x, self.wk[...])
        value = product("BTD,DNK->BNTK", x, self.wv[...])
        return checkpoint_name(query, "query"), checkpoint_name(key, "key"), checkpoint_name(value, "value")

    def project(self, x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B T D] -> query [B T H K], key and value [B N T K], normed and rotated."""
        query, key, value = self.heads(x)
        query, key = query.swapaxes(1, 2), key.swapaxes(1, 2)
        return rotate(self.q_norm(query), *angles), rotate(self.k_norm(key), *angles).swapaxes(1, 2), value

    def output(self, mixed: jax.Array) -> jax.Array:
        """[B T H K] -> [B T D]."""
        return product("BTHK,HKD->BTD", mixed, self.wo[...])


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention: query [B T H K], key and value [B N S K], mask bool[B T S] (or [1 T S]) -> [B T H K].

    Scores and softmax are float32; every query must see at least one slot.
    """
    B, T, H, K = query.shape
    N = key.shape[1]
    grouped = query.reshape(B, T, N, H // N, K)
    scores = jnp.einsum("BTNhK,BNSK->BNhTS", grouped, key, preferred_element_type=jnp.float32) * K**-0.5
    shares = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -jnp.inf), axis=-1).astype(value.dtype)
    return jnp.einsum("BNhTS,BNSK->BTNhK", shares, value).reshape(B, T, H, K)


def attend_causal(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """:func:`attend` for whole sequences and a mask bool[B T T] (or [1 T T]) that lets no query see a later key.

    CPUs take the queries in blocks, each with the keys up to its end, and the scores of a block again for the gradient: they
    leave half of the work out, and what is at work stays in the cache.
    """
    if platform() != "cpu":
        return attend(query, key, value, mask)
    T = query.shape[1]
    size = max(BLOCK, -(-T // BLOCKS))
    spans = [(start, min(start + size, T)) for start in range(0, T, size)]
    one = jax.checkpoint(attend)
    parts = [one(query[:, a:b], key[:, :, :b], value[:, :, :b], mask[:, a:b, :b]) for a, b in spans]
    return jnp.concatenate(parts, axis=1)


def causal_mask(T: int, segments: jax.Array | None) -> jax.Array:
    """bool[B T T] ([1 T T] without segments): a token sees itself and earlier tokens of its own segment."""
    mask = jnp.tril(jnp.ones((1, T, T), bool))
    if segments is None:
        return mask
    return mask & (segments[:, :, None] == segments[:, None, :])


def attend_past(query: jax.Array, past: KVCache, own: tuple[jax.Array, jax.Array], layer, reach: int) -> jax.Array:
    """:func:`attend` to the first ``reach`` slots of a layer of the cache and, behind them, to the T tokens' own key and value.

    Without a ``layer``, ``past`` holds that of one layer, and all of its slots are attended to. A token sees its row's visible
    slots that are filled, the tokens before it as far as they are visible, and always itself.
    """
    B, T, H, K = query.shape
    N = own[0].shape[1]
    grouped = query.reshape(B, T, N, H // N, K)
    length, start = (jnp.broadcast_to(part, B)[:, None, None] for part in (past.length, past.visible_from))
    new, slots = jnp.arange(T), jnp.arange(reach)
    before = (new <= new[:, None]) & (length + new >= start) | (new == new[:, None])
    parts = [(*own, before)]
    if reach:
        cut = (1, B, N, reach, K)
        filled = [past.keys, past.values]
        if layer is not None:
            filled = [jax.lax.dynamic_slice(part, (layer, 0, 0, 0, 0), cut)[0] for part in filled]
        parts.append((*filled, (slots < length) & (slots >= start)))

    def score(key, mask):
        scores = jnp.einsum("BTNhK,BNSK->BNhTS", grouped, key, preferred_element_type=jnp.float32) * K**-0.5
        return jnp.where(mask[:, None, None], scores, -jnp.inf)

    scores = [score(key, mask) for key, _, mask in parts]
    top = functools.reduce(jnp.maximum, [jnp.max(part, axis=-1, keepdims=True) for part in scores])
    shares = [jnp.exp(part - top) for part in scores]
    whole = sum(jnp.sum(part, axis=-1, keepdims=True) for part in shares)
    # CPUs take the product in its own order: writing it in another costs them four times the product.
    order = "BNhTK" if platform() == "cpu" else "BTNhK"
    mixed = sum(
        jnp.einsum(
            f"BNhTS,BNSK->{order}", (share / whole).astype(value.dtype), value, preferred_element_type=jnp.float32
        )
        for share, (_, value, _) in zip(shares, parts, strict=True)
    )
    mixed = jnp.einsum(f"{order}->BTNhK", mixed)
    return mixed.astype(query.dtype).reshape(B, T, H, K)


def fill(part: jax.Array, new: jax.Array, length: jax.Array) -> jax.Array:
    """Keys or values [L B N S K] with ``new`` [L B N T K] from slot ``length`` (i32[], or i32[B]) on, in place where it can be."""
    new = new.astype(part.dtype)
    if length.ndim == 0:
        return jax.lax.dynamic_update_slice(part, new, (0, 0, 0, length, 0))
    if platform() == "cpu":
        # Row by row: what XLA makes of all at once copies the cache there, which trebles the time of a pass of 16 rows.
        def one(row, part):
            own = jax.lax.dynamic_slice_in_dim(new, row, 1, axis=1)
            return jax.lax.dynamic_update_slice(part, own, (0, row, 0, length[row], 0))

        return jax.lax.fori_loop(0, len(length), one, part)
    one_row = lambda row, change, at: jax.lax.dynamic_update_slice(row, change, (0, 0, at, 0))  # noqa: E731
    return jax.vmap(one_row, (1, 1, 0), 1)(part, new, length)

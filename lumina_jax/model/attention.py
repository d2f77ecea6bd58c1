"""Causal attention with QK-norm and rotary positions, over whole sequences or over a cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lumina_jax.config import ModelConfig
from lumina_jax.model.params import weight
from lumina_jax.model.parts import QKNorm, rotate


class KVCache(NamedTuple):
    """Keys and values of every layer, filled from slot 0; all rows share slots, so short prompts are padded on the left.

    ``keys`` and ``values`` are [L B N S K], the order in which a decoding step reads them; ``length`` i32[] is the number of
    filled slots; ``visible_from`` i32[B] is the first slot a row may see, and its positions are counted from there: padding
    stays hidden, and so does the prompt from the unconditional row of a guided pair.
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array
    visible_from: jax.Array


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
        query = jnp.einsum("BTD,DHK->BHTK", x, self.wq[...])
        key = jnp.einsum("BTD,DNK->BNTK", x, self.wk[...])
        value = jnp.einsum("BTD,DNK->BNTK", x, self.wv[...])
        return checkpoint_name(query, "query"), checkpoint_name(key, "key"), checkpoint_name(value, "value")

    def project(self, x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B T D] -> query [B T H K], key and value [B N T K], normed and rotated."""
        query, key, value = self.heads(x)
        query, key = query.swapaxes(1, 2), key.swapaxes(1, 2)
        return rotate(self.q_norm(query), *angles), rotate(self.k_norm(key), *angles).swapaxes(1, 2), value

    def output(self, mixed: jax.Array) -> jax.Array:
        """[B T H K] -> [B T D]."""
        return jnp.einsum("BTHK,HKD->BTD", mixed, self.wo[...])


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


def causal_mask(T: int, segments: jax.Array | None) -> jax.Array:
    """bool[B T T] ([1 T T] without segments): a token sees itself and earlier tokens of its own segment."""
    mask = jnp.tril(jnp.ones((1, T, T), bool))
    if segments is None:
        return mask
    return mask & (segments[:, :, None] == segments[:, None, :])


def cache_mask(T: int, cache: KVCache) -> jax.Array:
    """bool[B T S] for the T tokens about to be written: each sees its row's visible slots up to its own, and always itself."""
    slots = jnp.arange(cache.keys.shape[3])
    own = cache.length + jnp.arange(T)
    start = cache.visible_from[:, None, None]
    return (slots <= own[:, None]) & (slots >= start) | (slots == own[:, None])

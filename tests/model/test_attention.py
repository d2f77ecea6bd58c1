"""Attention within whole sequences."""

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.model.attention import attend, causal_mask
from lumina_jax.model.cpu import MIN_BLOCK, attend_causal


def test_blocks_of_queries_attend_as_all_at_once():
    """Values and gradients, where the last block is shorter and segments begin within blocks."""
    B, T, H, N, K = 2, 2 * MIN_BLOCK + 22, 4, 2, 8
    rng = np.random.default_rng(0)
    query, key, value, change = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((B, T, H, K), (B, N, T, K), (B, N, T, K), (B, T, H, K))
    )
    mask = causal_mask(T, jnp.asarray(np.stack([np.arange(T) // 40, np.arange(T) // 90])))

    def run(how):
        out, back = jax.vjp(lambda *qkv: how(*qkv, mask), query, key, value)
        return out, *back(change)

    for whole, blocks in zip(
        jax.jit(run, static_argnums=0)(attend), jax.jit(run, static_argnums=0)(attend_causal), strict=True
    ):
        np.testing.assert_allclose(blocks, whole, atol=1e-5, rtol=1e-5)

"""Attention to a cache: the kernel for TPU equals the plain definition, and an int8 cache is near the exact one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import ModelConfig
from lumina_jax.model import attention, cached_attention
from lumina_jax.model.attention import Int8Slots, KVCache, Order, quantize_slots, take_slots
from lumina_jax.model.backend import BACKENDS
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.int8 import logit_error

B, T, H, N, K, S = 2, 9, 4, 2, 128, 384
PARENTS = (0, 0, 1, 2, 3, 4, 0, 6, 6)


def a_tree() -> Order:
    ancestors, depth = np.eye(T, dtype=bool), np.zeros(T, int)
    for node in range(1, T):
        ancestors[node] |= ancestors[PARENTS[node]]
        depth[node] = depth[PARENTS[node]] + 1
    return Order(depth, ancestors)


def normal(number: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(number), shape)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    ("length", "visible_from"), [((300, 5), (130, 0)), ((0, S - T), (0, 0)), ((200, 128), (200, 127))]
)
def test_the_kernel_is_the_plain_definition(int8, length, visible_from):
    query, new = normal(0, B, T, H, K), (normal(1, B, N, T, K), normal(2, B, N, T, K))
    slots = [normal(number, 3, B, N, S, K) for number in (3, 4)]
    past = KVCache(*(map(quantize_slots, slots) if int8 else slots), jnp.array(length), jnp.array(visible_from))
    arguments = (query, past, past.stored(*new), jnp.int32(1), a_tree(), S)
    expected, got = attention.attend_past(*arguments), cached_attention.attend_past(*arguments)
    assert jnp.allclose(got, expected, atol=2e-5)


def test_the_kernel_is_left_where_it_does_not_suit():
    cache = KVCache(*(jnp.zeros((1, 1, 1, 256, 128)),) * 2, jnp.zeros((), jnp.int32), jnp.zeros(1, jnp.int32))
    assert cached_attention.suits(16, cache) and not cached_attention.suits(1, cache)
    assert not cached_attention.suits(16, cache._replace(keys=jnp.zeros((1, 1, 1, 200, 128))))
    assert not cached_attention.suits(16, cache._replace(keys=jnp.zeros((1, 1, 1, 256, 64))))
    assert cached_attention.reaches(16, cache, (256, 128)) is None
    assert cached_attention.reaches(1, cache, (256, 128)) == (256, 128) and cached_attention.reaches(
        16, cache, (0,)
    ) == (0,)


def test_an_int8_slot_errs_by_half_a_step():
    x = normal(0, 2, 3, 5, 16).at[0, 0, 0].set(0)
    codes, scale = quantize_slots(x)
    assert codes.dtype == jnp.int8 and scale.dtype == jnp.bfloat16 and scale.shape == x.shape[:-1]
    error = jnp.abs(codes * scale[..., None].astype(jnp.float32) - x)
    # A scale of 8 bits may fall short of the largest number by half a step more.
    assert (error <= 1.01 * scale[..., None]).all() and (jnp.abs(codes).max(-1).ravel()[1:] >= 126).all()


@pytest.mark.parametrize("unstacked", [False, True])
def test_a_tree_s_tokens_see_their_ancestors_and_a_path_can_be_kept(unstacked):
    cfg = ModelConfig(vocab=64, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48, dropout=0.0)
    model = Chameleon(cfg, nnx.Rngs(0))
    for int8 in (False, True):
        ids, order, prompt = jnp.arange(2 * T).reshape(2, T), a_tree(), jnp.arange(8).reshape(2, 4) + 30
        _, start = model.cached(prompt, model.empty_cache(2, 32, int8))
        start = start._replace(length=jnp.full(2, 4))
        layers, cache = model.unstack(start) if unstacked else (None, start)
        hidden, cache = model.cached(ids, cache, layers=layers, order=order)
        for path in ([0, 1, 2, 3, 4, 5], [0, 6, 8], [0, 6, 7]):
            expected, chain = model.cached(ids[:, path], start)
            assert jnp.allclose(hidden[:, path], expected, atol=1e-4)
            sources = 4 + jnp.broadcast_to(jnp.array(path[1:]), (2, len(path) - 1))
            kept = take_slots(cache, sources, jnp.full(2, 5)).stack()._replace(length=chain.length)
            token = jnp.array([[50], [51]])
            assert jnp.allclose(model.cached(token, kept)[0], model.cached(token, chain)[0], atol=1e-4)


def test_an_int8_cache_is_near_and_does_not_depend_on_the_passes():
    cfg = ModelConfig(vocab=64, width=64, layers=3, heads=4, kv_heads=2, head_dim=16, mlp=96, qk_groups=2, dropout=0.0)
    model = Chameleon(cfg, nnx.Rngs(0))
    ids = jnp.arange(60).reshape(2, 30)
    together, cache = model.cached(ids, model.empty_cache(2, 32, int8=True))
    assert isinstance(cache.keys, Int8Slots) and cache.keys.codes.dtype == jnp.int8
    first, cache = model.cached(ids[:, :11], model.empty_cache(2, 32, int8=True))
    second, _ = model.cached(ids[:, 11:], cache)
    assert jnp.allclose(jnp.concatenate([first, second], axis=1), together, atol=1e-4)
    error = logit_error(model.logits(model(ids)), model.logits(together))
    assert 0 < error.rms < 0.03 * error.spread


def test_the_tpu_s_form_of_a_model_is_the_plain_one(monkeypatch):
    """With the kernel interpreted, a window behind a prompt has the hidden states of plain attention."""
    cfg = ModelConfig(vocab=64, width=64, layers=2, heads=2, kv_heads=1, head_dim=128, mlp=48, dropout=0.0)
    model, ids = Chameleon(cfg, nnx.Rngs(0)), jnp.arange(40).reshape(2, 20)
    _, cache = model.cached(ids[:, :8], model.empty_cache(2, 128)._replace(visible_from=jnp.array([0, 3])))
    expected, _ = model.cached(ids[:, 8:], cache, (128, 64))
    tpu = BACKENDS["tpu"]._replace(rotary=BACKENDS["cpu"].rotary)
    monkeypatch.setattr("lumina_jax.model.chameleon.backend", lambda: tpu)
    got, _ = model.cached(ids[:, 8:], cache, (128, 64))
    assert jnp.allclose(got, expected, atol=1e-4)

"""The form of a function for one kind of device equals its plain definition: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.model import backend as backends
from lumina_jax.model.attention import KVCache, Order, causal_mask
from lumina_jax.model.backend import BACKENDS, CPU, Backend, backend
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.cpu import MIN_BLOCK
from lumina_jax.sharding import make_mesh

PLAIN = Backend()


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_equal_with_gradients(form, plain, *inputs, **options) -> None:
    """Two functions of float inputs: their values, and the gradients of a number made of these by every input."""

    def outcome(function):
        values, pull = jax.vjp(lambda *inputs: function(*inputs, **options), *inputs)
        return values, *pull(draw(9, *values.shape))

    for ours, theirs in zip(jax.jit(outcome, static_argnums=0)(form), outcome(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.smoke
def test_each_platform_has_the_forms_that_are_proved_here():
    proved = {"einsum", "swiglu", "rotary", "attend_causal", "attend_past", "write_slots", "select", "run_unstacked"}
    proved |= {"reaches"}  # test_cached_attention.py
    for forms in BACKENDS.values():
        changed = {name for name, form in forms._asdict().items() if callable(form) and form != getattr(PLAIN, name)}
        assert changed <= proved
    assert backend() is CPU and backend(make_mesh(MeshConfig())) is CPU


@pytest.mark.smoke
@pytest.mark.parametrize("letters", ["BTD,DHK->BHTK", "BTD,DNK->BNTK", "BTHK,HKD->BTD", "BTD,DF->BTF"])
def test_the_matrix_product_is_einsum(letters):
    sizes = dict(B=2, T=3, D=16, H=4, N=2, K=8, F=24)
    shapes = ([sizes[letter] for letter in term] for term in letters.split("->")[0].split(","))
    x, w = (draw(seed, *shape) for seed, shape in enumerate(shapes))
    assert_equal_with_gradients(lambda x, w: CPU.einsum(letters, x, w), lambda x, w: PLAIN.einsum(letters, x, w), x, w)


def test_swiglu_has_the_gradient_of_its_definition():
    assert_equal_with_gradients(CPU.swiglu, PLAIN.swiglu, 3 * draw(0, 2, 5, 8), draw(1, 2, 5, 8))


@pytest.mark.parametrize("T", [1, 7])
def test_rotary_angles_are_the_same(T):
    positions = jnp.asarray(np.random.default_rng(0).integers(0, 5000, (3, T)))
    for ours, theirs in zip(*(forms.rotary(positions, 8, 1e4, jnp.float32) for forms in (CPU, PLAIN)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_blocks_of_queries_attend_as_all_at_once():
    """The last block is shorter, and segments begin within blocks."""
    B, T, H, N, K = 2, 2 * MIN_BLOCK + 22, 4, 2, 8
    mask = causal_mask(T, jnp.asarray(np.stack([np.arange(T) // 40, np.arange(T) // 90])))
    arrays = draw(0, B, T, H, K), draw(1, B, N, T, K), draw(2, B, N, T, K)
    assert_equal_with_gradients(CPU.attend_causal, PLAIN.attend_causal, *arrays, mask=mask)


@pytest.mark.parametrize(("stacked", "reach"), [(True, 0), (True, 6), (True, 9), (False, 9)])
def test_attention_to_the_cache_is_the_same(stacked, reach):
    L, B, T, H, N, K, S = 3, 2, 3, 4, 2, 8, 9
    query, key, value = draw(0, B, T, H, K), draw(1, B, N, T, K), draw(2, B, N, T, K)
    shape = (L, B, N, S, K) if stacked else (B, N, S, K)
    lengths = jnp.array([0, 0] if reach == 0 else [6, 4])

    def attend(forms):
        def run(query, key, value, keys, values):
            past = KVCache(keys, values, lengths, jnp.array([0, 2]))
            return forms.attend_past(query, past, (key, value), 1 if stacked else None, Order.of_chain(T), reach)

        return run

    assert_equal_with_gradients(attend(CPU), attend(PLAIN), query, key, value, draw(3, *shape), draw(4, *shape))


@pytest.mark.parametrize("start", [4, [1, 6]])
def test_slots_are_written_the_same(start):
    cache, new = draw(0, 3, 2, 2, 9, 8), draw(1, 3, 2, 2, 3, 8)
    start = jnp.asarray(start)
    ours, theirs = (forms.write_slots(cache, new, start) for forms in (CPU, PLAIN))
    np.testing.assert_array_equal(ours, theirs)
    first = jnp.broadcast_to(start, 2)
    np.testing.assert_array_equal(theirs[:, 1, :, first[1] : first[1] + 3], new[:, 1])


def test_selected_entries_are_those_of_the_index_and_zero_outside():
    x, index = draw(0, 4, 7), jnp.array([[0], [6], [-1], [7]])
    for forms in (CPU, PLAIN):
        np.testing.assert_array_equal(forms.select(x, index)[:, 0], jnp.array([x[0, 0], x[1, 6], 0, 0]))
    assert_equal_with_gradients(CPU.select, PLAIN.select, x, index=index)


@pytest.mark.parametrize("rows_differ", [False, True])
def test_unstacked_layers_decode_as_a_scan(rows_differ, monkeypatch):
    """Hidden states and cache of two passes, with layers of their own on the one side, all plain on the other."""
    cfg = ModelConfig(vocab=61, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=48, qk_groups=2, dropout=0.0)
    model = Chameleon(cfg, nnx.Rngs(0))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, cfg.vocab, (2, 8)))

    def decode():
        _, cache = model.cached(ids[:, :5], model.empty_cache(2, 16)._replace(visible_from=jnp.array([0, 2])))
        cache = cache._replace(length=cache.length - jnp.array([0, 1]) if rows_differ else cache.length)
        layers, cache = model.unstack(cache)
        hidden, cache = model.cached(ids[:, 5:7], cache, layers=layers)
        last, cache = model.cached(ids[:, 7:], cache, layers=layers)
        return hidden, last, *cache.stack()

    ours = decode()
    monkeypatch.setattr(backends, "platform", lambda: "gpu")
    assert backend().run_unstacked is None and model.unstack(KVCache(ids, ids, ids, ids))[0] == model.scan_cached
    for a, b in zip(ours, decode(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)

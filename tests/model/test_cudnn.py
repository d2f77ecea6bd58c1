"""Attention by cuDNN: its function under XLA equals the plain definition, and for a GPU it is lowered to cuDNN's kernels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.model import attention, backend, cudnn
from lumina_jax.model.attention import KVCache, Order, causal_mask
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sharding import make_mesh, per_device

CFG = ModelConfig(vocab=62, width=32, layers=1, heads=4, kv_heads=2, head_dim=16, mlp=48, qk_groups=2, dropout=0.0)


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), jnp.float32)


def rows(segments: list[list[int]]) -> tuple[jax.Array, list[jax.Array]]:
    """Segments i32[B T], and for them query [B T 4 16], key and value [B T 2 16]."""
    B, T = np.shape(segments)
    return jnp.array(segments, jnp.int32), [draw(n, B, T, heads, 16) for n, heads in enumerate((4, 2, 2))]


def outcome(attend, arrays, learned):
    """Attention [B T H K] of the ``learned`` bool[B T] tokens, and its gradients by the three arrays."""

    def number(*arrays):
        mixed = jnp.where(learned[..., None, None], attend(*arrays), 0)
        return jnp.sum(jnp.sin(mixed) * draw(7, *mixed.shape)), mixed

    grads, mixed = jax.jit(jax.grad(number, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return mixed, *grads


def assert_close(ours, theirs) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def plain(segments, query, key, value):
    return attention.attend(query, key.swapaxes(1, 2), value.swapaxes(1, 2), causal_mask(query.shape[1], segments))


PACKED = [[1, 1, 2, 2, 2, 3, 0], [1, 1, 1, 1, 1, 1, 1], [1, 2, 2, 2, 0, 0, 0]]
WHOLE = [[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("segments", [PACKED, WHOLE], ids=["packed, an odd length", "a segment a row"])
def test_segments_attend_as_in_the_plain_definition(segments):
    segments, arrays = rows(segments)
    bias = cudnn.segment_bias(segments, jnp.float32)
    ours = partial(cudnn.attend_segments, segments=segments, bias=bias, implementation="xla")
    assert_close(outcome(ours, arrays, segments > 0), outcome(partial(plain, segments), arrays, segments > 0))


def test_rows_without_segments_are_causal():
    segments, arrays = rows(WHOLE)
    everywhere = jnp.ones_like(segments, bool)
    ours = partial(cudnn.attend_segments, segments=None, bias=None, implementation="xla")
    assert_close(outcome(ours, arrays, everywhere), outcome(partial(plain, None), arrays, everywhere))


def test_segments_split_over_rows_and_heads():
    segments, arrays = rows(PACKED[:2] * 2)
    bias = cudnn.segment_bias(segments, jnp.float32)
    run = partial(cudnn.attend_segments, implementation="xla")
    with jax.set_mesh(make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))):
        split = per_device(run, ["BTHK", "BTNK", "BTNK", "BT", "B1TS"], "BTHK")
        ours = outcome(lambda *arrays: split(*arrays, segments, bias), arrays, segments > 0)
    assert_close(ours, outcome(partial(plain, segments), arrays, segments > 0))


@pytest.mark.parametrize("branches", [False, True])
def test_a_prompt_attends_as_in_the_plain_definition(branches):
    """The first row is padded on the left by two tokens."""
    query, key, value = draw(0, 2, 5, 4, 16), draw(1, 2, 2, 5, 16), draw(2, 2, 2, 5, 16)
    order = Order.of_chain(5)
    if branches:  # the last two tokens both follow the third
        order = Order(np.array([0, 1, 2, 3, 3]), order.ancestors & ~np.eye(5, k=-1, dtype=bool)[[0, 0, 0, 0, 4]])
    past = KVCache(
        jnp.zeros((1, 2, 2, 0, 16)), jnp.zeros((1, 2, 2, 0, 16)), jnp.zeros((), jnp.int32), jnp.array([2, 0])
    )
    ours = cudnn.attend_prompt(query, past, (key, value), order, "xla")
    np.testing.assert_allclose(ours, attention.attend_past(query, past, (key, value), 0, order, 0), atol=1e-5)


@pytest.fixture
def gpu(monkeypatch):
    """Programs are lowered as on a GPU with cuDNN 9.11, which this machine need not have."""
    stablehlo = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(stablehlo, "check_cudnn_version", lambda: 91100)
    for module in (backend, cudnn):
        monkeypatch.setattr(module, "platform", lambda: "gpu")


def lowered(function, *arguments) -> str:
    """The program for a GPU, as text."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("kinds", [("Softmax",), ("Softmax", "ScaleBiasSoftmax")], ids=["causal", "segments"])
def test_a_train_step_on_a_gpu_runs_cudnn_forward_and_backward(gpu, kinds):
    model, ids = Chameleon(CFG, nnx.Rngs(0)), jnp.ones((2, 8), jnp.int32)
    model = jax.tree.map(lambda w: w.astype(jnp.bfloat16), model)
    segments = jnp.ones_like(ids) if len(kinds) > 1 else None
    text = lowered(jax.grad(lambda model: model(ids, segments=segments).astype(jnp.float32).sum()), model)
    for kind in kinds:
        assert f"__cudnn$fmha{kind}(" in text and f"__cudnn$fmha{kind}Backward(" in text
    assert text.count("CAUSAL") >= 2 * len(kinds)


def test_a_prompt_on_a_gpu_runs_cudnn_and_float32_is_left_to_xla(gpu):
    model, ids = Chameleon(CFG, nnx.Rngs(0)), jnp.ones((2, 8), jnp.int32)
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), model)

    def prefill(model):
        return model.cached(ids, model.empty_cache(2, 8), reaches=(0,))[0]

    assert "__cudnn$fmha" in lowered(prefill, half) and "__cudnn$fmha" not in lowered(prefill, model)
    assert "__cudnn$fmha" not in lowered(lambda model: model(ids), model)


def test_where_cudnn_cannot_run_the_error_says_why(monkeypatch):
    model, ids = Chameleon(CFG, nnx.Rngs(0)), jnp.ones((1, 4), jnp.int32)
    with pytest.raises(InputError, match="needs an NVIDIA GPU, and this is cpu; choose 'auto'"):
        model(ids, attention="cudnn")
    monkeypatch.setattr(cudnn, "platform", lambda: "gpu")
    with pytest.raises(InputError, match="heads of 16 numbers in float32: cuDNN takes bfloat16"):
        model(ids, attention="cudnn")
    with pytest.raises(InputError, match=r"mesh\.compute='float32': cuDNN takes bfloat16"):
        MeshConfig(attention="cudnn", compute="float32")

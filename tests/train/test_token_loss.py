"""Cross-entropy and z-loss as sums: the definition, and a train step's version in chunks."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.config import MeshConfig
from lumina_jax.sharding import make_mesh
from lumina_jax.train.loss import LossSums, step_loss, token_loss

B, T, D, V = 3, 11, 8, 13


@pytest.fixture(scope="module")
def arrays():
    """hidden [B T D], head [D V], targets i32[B T], learn bool[B T]."""
    rng = np.random.default_rng(0)
    hidden, head = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((B, T, D), (D, V)))
    return hidden, head, jnp.asarray(rng.integers(0, V, (B, T))), jnp.asarray(rng.random((B, T)) < 0.6)


def total(hidden, head, targets, learn, chunk=None):
    """The loss that step_loss gives with a z-loss weight of 0.1, and the sums; all logits at once without a ``chunk``."""
    if chunk:
        return step_loss(hidden, head, targets, learn.astype(jnp.float32), 0.1, chunk)
    sums = token_loss(hidden, head, targets, learn)
    return sums.xent + 0.1 * sums.z, sums


@pytest.mark.smoke
def test_sums_are_the_definition(arrays):
    hidden, head, targets, learn = (np.asarray(x) for x in arrays)
    logits = hidden.astype(np.float64) @ head
    normaliser = np.log(np.exp(logits).sum(-1))
    xent = normaliser - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    expected = LossSums(xent[learn].sum(), (normaliser[learn] ** 2).sum(), learn.sum())
    np.testing.assert_allclose(token_loss(*arrays), expected, rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 11, 50])
def test_chunks_give_the_same_values_and_gradients(arrays, chunk):
    grads, sums = jax.grad(total, argnums=(0, 1), has_aux=True)(*arrays)
    chunked_grads, chunked_sums = jax.grad(total, argnums=(0, 1), has_aux=True)(*arrays, chunk)
    np.testing.assert_allclose(chunked_sums, sums, rtol=1e-6)
    for chunked, unchunked in zip(chunked_grads, grads, strict=True):
        np.testing.assert_allclose(chunked, unchunked, atol=1e-5)


def test_positions_that_are_not_learned_change_nothing(arrays):
    hidden, head, targets, learn = arrays
    other = jnp.where(learn, targets, 0)
    loud = jnp.where(learn[..., None], hidden, 100 * hidden)
    for chunk in (None, 4):
        np.testing.assert_allclose(total(loud, head, other, learn, chunk)[1], total(*arrays, chunk)[1], rtol=1e-6)
        grads, sums = jax.grad(total, has_aux=True)(hidden, head, targets, jnp.zeros_like(learn), chunk)
        assert not jnp.any(grads) and not any(sums)


def test_sums_of_halves_add_up(arrays):
    hidden, head, targets, learn = arrays
    halves = [token_loss(hidden[rows], head, targets[rows], learn[rows]) for rows in (slice(0, 1), slice(1, 3))]
    np.testing.assert_allclose(jax.tree.map(jnp.add, *halves), token_loss(*arrays), rtol=1e-6)


def test_logits_of_all_tokens_never_exist_at_once():
    """Twenty chunks of 64 tokens and a vocabulary of 1,000 need much less than the 5.1 MB of all logits."""
    sizes = dict(hidden=(1, 1280, D), head=(D, 1000), targets=(1, 1280), learn=(1, 1280))
    kinds = dict(hidden="float32", head="float32", targets="int32", learn="bool")
    shapes = [jax.ShapeDtypeStruct(sizes[name], kinds[name]) for name in sizes]

    def memory(chunk):
        step = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True), static_argnums=4)
        return step.lower(*shapes, chunk).compile().memory_analysis().temp_size_in_bytes

    assert memory(None) > 5_000_000 > 1_000_000 > memory(64)


def test_half_precision_is_summed_in_float32(arrays):
    hidden, head, targets, learn = arrays
    for chunk in (None, 4):
        _, sums = total(hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16), targets, learn, chunk)
        assert {x.dtype for x in sums} == {jnp.dtype("float32")}
        np.testing.assert_allclose(sums, token_loss(*arrays), rtol=2e-2)


@pytest.mark.parametrize("mesh", [None, (1, 1, 1), (2, 2, 2), (1, 4, 2), (8, 1, 1)])
@pytest.mark.parametrize("chunk", [5, 50])
def test_step_loss_has_the_gradients_of_token_loss(mesh, chunk):
    """One pass gives the weighted loss, its gradients and the plain sums, with rows, D and V split over devices."""
    rng = np.random.default_rng(1)
    hidden, head = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((8, T, D), (D, 16)))
    targets, learn = jnp.asarray(rng.integers(0, 16, (8, T))), jnp.asarray(rng.random((8, T)) < 0.6)
    weights = jnp.where(learn, jnp.asarray(rng.uniform(0.5, 2, (8, T)), jnp.float32), 0)

    def split(hidden, head):
        loss, sums = step_loss(hidden, head, targets, weights, 0.1, chunk)
        return 3 * loss, sums

    def unsplit(hidden, head):
        logits = hidden @ head
        normaliser = jax.nn.logsumexp(logits, -1)
        xent = normaliser - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return 3 * jnp.sum(weights * (xent + 0.1 * normaliser**2)), token_loss(hidden, head, targets, learn)

    context = contextlib.nullcontext()
    if mesh:
        sizes = dict(zip(("replica", "fsdp", "tensor"), mesh, strict=True))
        context = jax.set_mesh(make_mesh(MeshConfig(**sizes), jax.devices()[: math.prod(mesh)]))
    with context:
        ours = jax.jit(jax.value_and_grad(split, argnums=(0, 1), has_aux=True))(hidden, head)
    theirs = jax.value_and_grad(unsplit, argnums=(0, 1), has_aux=True)(hidden, head)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

"""Next-token cross-entropy and z-loss as sums; a train step takes them in chunks, so that logits [B T V] never exist whole."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lumina_jax.model.backend import backend
from lumina_jax.sharding import ROWS, STORE, all_gather, axis_size, per_device, psum, psum_scatter

TILE = 128
"""Rows of a matrix that TPUs multiply without padding."""


class LossSums(NamedTuple):
    """f32[] sums over learned positions: cross-entropy, squared log-normaliser (z-loss, unweighted), and their number.

    Sums, not means, cross chunks, microbatches and hosts.
    """

    xent: jax.Array
    z: jax.Array
    tokens: jax.Array

    @classmethod
    def zero(cls) -> "LossSums":
        """Sums over nothing."""
        return cls(*(jnp.zeros((), jnp.float32),) * 3)


def token_loss(hidden: jax.Array, head: jax.Array, targets: jax.Array, learn: jax.Array) -> LossSums:
    """hidden [B T D], head [D V], targets i32[B T], learn bool[B T] -> LossSums, in float32; the definition, all logits at once.

    Source: forward of ChameleonXLLMXForConditionalGeneration (z-loss on learned positions only).
    """
    logits = jnp.einsum("BTD,DV->BTV", hidden, head, preferred_element_type=jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    learn = learn.astype(jnp.float32)
    return LossSums(jnp.sum((normaliser - target_logit) * learn), jnp.sum(normaliser**2 * learn), jnp.sum(learn))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def step_loss(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, z_weight: float, chunk: int
) -> tuple[jax.Array, LossSums]:
    """(sum of ``weights`` * (cross-entropy + ``z_weight`` * z), the sums): :func:`token_loss` for a train step.

    ``weights`` f32[B T] are 0 where nothing is learned, else more than 0 (weighting.py); the sums are not weighted.
    Only the first has a gradient. It is computed together with the value, chunk by chunk, so that logits are computed once.
    Every device works on its own rows and its own part of V; the head's gradient is summed over devices behind the last chunk.
    """
    return _with_gradients(hidden, head, targets, weights, z_weight, chunk)[0]


def _with_gradients(hidden, head, targets, weights, z_weight, chunk):
    stored = P(*(STORE[letter] for letter in "DV"))
    run = functools.partial(_device_loss, z_weight=z_weight, chunk=chunk)
    run = per_device(run, ("BTD", stored, "BT", "BT"), ("", "", "", "", "BTD", stored))
    loss, *sums, d_hidden, d_head = run(hidden, head, targets, weights)
    return (loss, LossSums(*sums)), (d_hidden, d_head)


def _scaled(z_weight, chunk, gradients, change):
    return *(gradient * change[0].astype(gradient.dtype) for gradient in gradients), None, None


step_loss.defvjp(_with_gradients, _scaled)


def _device_loss(hidden, head, targets, weights, *, z_weight: float, chunk: int):
    """One device's rows -> weighted loss and three sums of all devices, the gradients of this device's hidden and head [D V]."""
    head = all_gather(head, "fsdp")
    B, T, D = hidden.shape
    chunks = [_cut(x.reshape(B * T, -1), B * chunk) for x in (hidden, targets, weights)]
    first = head.shape[1] * (jax.lax.axis_index("tensor") if axis_size("tensor") > 1 else 0)

    def add(carry, rows):
        sums, d_head = carry
        hidden, targets, weights = rows
        learn = (weights > 0).astype(jnp.float32)
        logits = jnp.einsum("TD,DV->TV", hidden, head, preferred_element_type=jnp.float32)
        normaliser = _logsumexp(logits)
        index = targets - first
        target_logit = psum(backend().select(logits, index), "tensor")
        slope = (1 + 2 * z_weight * normaliser) * jnp.exp(logits - normaliser) - (jnp.arange(head.shape[1]) == index)
        slope = (weights * slope).astype(hidden.dtype)
        xent, z = normaliser - target_logit, normaliser**2
        new = jnp.sum(weights * (xent + z_weight * z)), jnp.sum(xent * learn), jnp.sum(z * learn), jnp.sum(learn)
        d_head += jnp.einsum("TD,TV->DV", hidden, slope, preferred_element_type=jnp.float32)
        d_rows = psum(jnp.einsum("TV,DV->TD", slope, head), "tensor")
        return (jax.tree.map(jnp.add, sums, new), d_head), d_rows

    zero = ((jnp.zeros((), jnp.float32), *LossSums.zero()), jnp.zeros(head.shape, jnp.float32))
    (sums, d_head), d_hidden = jax.lax.scan(add, zero, tuple(chunks))
    d_hidden = d_hidden.reshape(-1, D)[: B * T].reshape(B, T, D)
    d_head = psum(psum_scatter(d_head.astype(head.dtype), "fsdp"), "replica")
    return *(psum(x, ROWS) for x in sums), d_hidden, d_head


def _logsumexp(logits: jax.Array) -> jax.Array:
    """[T V] -> [T 1], over all parts of V."""
    largest = jnp.max(logits, -1, keepdims=True)
    if axis_size("tensor") > 1:
        largest = jax.lax.pmax(largest, "tensor")
    return jnp.log(psum(jnp.sum(jnp.exp(logits - largest), -1, keepdims=True), "tensor")) + largest


def _cut(x: jax.Array, max_rows: int) -> jax.Array:
    """[n F] -> [steps rows F] with rows <= ``max_rows``: a multiple of TILE where that divides n, else with zeros behind n."""
    n = x.shape[0]
    fewest = -(-n // max_rows)
    steps = next((steps for steps in range(fewest, 2 * fewest + 1) if n % (steps * TILE) == 0), fewest)
    rows = -(-n // steps)
    return jnp.pad(x, [(0, steps * rows - n), (0, 0)]).reshape(steps, rows, -1)

"""Next-token cross-entropy and z-loss as sums, over chunks of T so that logits [B T V] never exist whole."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LossSums(NamedTuple):
    """f32[] sums over learned positions: cross-entropy, squared log-normaliser (z-loss, unweighted), and their number.

    Sums, not means, cross chunks, microbatches and hosts.
    """

    xent: jax.Array
    z: jax.Array
    tokens: jax.Array


def token_loss(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, learn: jax.Array, chunk: int | None = None
) -> LossSums:
    """hidden [B T D], head [D V], targets i32[B T], learn bool[B T] -> LossSums, in float32.

    ``chunk`` tokens of each row have logits at a time (default: all); the backward pass computes them again.
    Source: forward of ChameleonXLLMXForConditionalGeneration (z-loss on learned positions only).
    """
    T = hidden.shape[1]
    if chunk is None or chunk >= T:
        return _sums(hidden, head, targets, learn)
    steps = -(-T // chunk)
    padded = [_chunks(x, steps, chunk) for x in (hidden, targets, learn)]

    @jax.checkpoint
    def add(total: LossSums, part):
        hidden, targets, learn = part
        return jax.tree.map(jnp.add, total, _sums(hidden, head, targets, learn)), None

    zero = LossSums(*(jnp.zeros((), jnp.float32),) * 3)
    return jax.lax.scan(add, zero, tuple(padded))[0]


def _sums(hidden: jax.Array, head: jax.Array, targets: jax.Array, learn: jax.Array) -> LossSums:
    logits = jnp.einsum("BTD,DV->BTV", hidden, head, preferred_element_type=jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    learn = learn.astype(jnp.float32)
    return LossSums(jnp.sum((normaliser - chosen) * learn), jnp.sum(normaliser**2 * learn), jnp.sum(learn))


def _chunks(x: jax.Array, steps: int, chunk: int) -> jax.Array:
    """[B T ...] -> [steps B chunk ...], zeros (not learned) behind T."""
    padding = [(0, 0), (0, steps * chunk - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding)
    return jnp.moveaxis(x.reshape(x.shape[0], steps, chunk, *x.shape[2:]), 1, 0)

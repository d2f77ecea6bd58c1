"""How much each learned token counts in the loss of a batch: ``optim.loss_weight``.

The original averages cross-entropy over the learned tokens of a microbatch, and these means over microbatches. Its sampler puts
samples of like length into a microbatch, whatever their kind. So each length counts by its number of samples, and within a length
all learned tokens count alike. "rows" is that average for batches of any composition: the samples of a global batch fall into
classes of like length, and a token weighs the samples of its class divided by the learned tokens of its class. A short text
counts as much as a picture; a short answer about a picture counts, as in the original, by its tokens beside the pictures of its
length. A batch is divided by its own number of samples, which is larger where packed texts fill it. "tokens" is the plain mean
over learned tokens, in which a sample counts by how many it has.

Source: FinetuneDistSampler (length clustering) of xllmx, and the loss of ChameleonXLLMXForConditionalGeneration.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.batch import Batch
from lumina_jax.sharding import ROWS, per_device, psum

CLASSES_PER_OCTAVE = 32
"""Lengths within 2.2% of each other are alike. The original's microbatches are drawn from 500 neighbouring global batches."""


def token_weights(batch: Batch, loss_weight: str) -> tuple[jax.Array, jax.Array]:
    """(weights f32[B T], their sum f32[]) of a global batch; a weight is 0 where nothing is learned, else more than 0.

    ``loss_weight`` is "tokens" (each learned token weighs 1) or "rows" (the sum is the number of samples). A sample is a segment of
    a row, so that packing changes no weight; nor do microbatches, devices and hosts, since classes are counted, in integers, over
    the whole global batch. A class of which nothing is learned has no weight.
    """
    if loss_weight == "tokens":
        weights = batch.learn.astype(jnp.float32)
        return weights, jnp.sum(weights)
    count = per_device(_class_weights, ("BT", "BT", "BT"), ("BT", ""))
    return count(batch.learn, batch.positions, batch.segments)


def _class_weights(learn: jax.Array, positions: jax.Array, segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One device's rows [B T] -> their weights f32[B T], and the sum of all devices' weights."""
    T = learn.shape[1]
    alike = jnp.asarray(length_classes(T))[_sample_lengths(positions, segments)]
    first, learn = (segments > 0) & (positions == 0), learn & (segments > 0)
    none = jnp.zeros(int(length_classes(T)[-1]) + 1, jnp.int32)
    samples, tokens = (psum(none.at[alike].add(x.astype(jnp.int32)), ROWS) for x in (first, learn))
    samples = jnp.where(tokens > 0, samples, 0)
    weight = samples / jnp.maximum(tokens, 1)
    return jnp.where(learn, weight[alike], 0.0), jnp.sum(samples).astype(jnp.float32)


def _sample_lengths(positions: jax.Array, segments: jax.Array) -> jax.Array:
    """i32[B T]: the number of positions of the sample that each token belongs to."""
    slot = jnp.arange(segments.shape[1], dtype=jnp.int32)
    ends = jnp.concatenate([segments[:, 1:] != segments[:, :-1], jnp.ones_like(segments[:, :1], bool)], axis=1)
    end = jax.lax.cummin(jnp.where(ends, slot, segments.shape[1]), axis=1, reverse=True)
    return jnp.clip(end - slot + positions + 1, 0, segments.shape[1])


def length_classes(longest: int) -> np.ndarray:
    """i32[longest + 1]: the class of each length, from integers, so that every device and mesh agrees."""
    octaves = int(np.ceil(np.log2(longest + 1)))
    edges = np.unique(np.floor(2.0 ** (np.arange(octaves * CLASSES_PER_OCTAVE + 1) / CLASSES_PER_OCTAVE)))
    return np.searchsorted(edges, np.arange(longest + 1), "right").astype(np.int32)

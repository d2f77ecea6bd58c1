"""Attention on NVIDIA GPUs: cuDNN's flash attention through jax.nn.dot_product_attention, each device on its own rows and heads.

cuDNN takes bfloat16 (not float32) and heads of at most LARGEST_HEAD numbers, a multiple of HEAD_MULTIPLE. It masks causally
without a mask in memory; segments it takes as numbers that are added to the scores, [B 1 T T], made once for all layers. A batch
in which no row holds two segments, as with large pictures, runs the causal kernel alone: each device decides in each step.
"""

import functools

import jax
import jax.numpy as jnp

from lumina_jax.errors import InputError
from lumina_jax.model import attention
from lumina_jax.model.attention import KeyValue, KVCache, Order, earlier_tokens
from lumina_jax.sharding import per_device, platform

LARGEST_HEAD = 128
HEAD_MULTIPLE = 8
HIDDEN_SCORE = -1e9
"""Added to the score of a key in another segment: bfloat16 holds it, and its softmax weight is 0."""


def supports(head_dim: int, dtype: jnp.dtype) -> bool:
    """Whether cuDNN has a kernel for heads of ``head_dim`` numbers of ``dtype``."""
    return dtype in (jnp.bfloat16, jnp.float16) and head_dim <= LARGEST_HEAD and head_dim % HEAD_MULTIPLE == 0


def check_support(head_dim: int, dtype: jnp.dtype) -> None:
    """Raises InputError where mesh.attention="cudnn" cannot run."""
    if platform() != "gpu":
        raise InputError(f"mesh.attention='cudnn' needs an NVIDIA GPU, and this is {platform()}; choose 'auto'")
    if not supports(head_dim, dtype):
        raise InputError(
            f"mesh.attention='cudnn' with heads of {head_dim} numbers in {jnp.dtype(dtype).name}: cuDNN takes bfloat16, and heads "
            f"of at most {LARGEST_HEAD} numbers, a multiple of {HEAD_MULTIPLE}; choose 'plain'"
        )


def segment_bias(segments: jax.Array | None, dtype: jnp.dtype) -> jax.Array | None:
    """``dtype`` [B 1 T T]: 0 where query and key have the same of ``segments`` i32[B T], else HIDDEN_SCORE; None for None."""
    if segments is None:
        return None
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return jnp.where(same, 0, HIDDEN_SCORE).astype(dtype)


def attend_segments(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array | None,
    bias: jax.Array | None,
    implementation: str = "cudnn",
) -> jax.Array:
    """Causal attention within ``segments`` i32[B T] (None: one a row): query [B T H K], key and value [B T N K] -> [B T H K].

    ``bias`` is their :func:`segment_bias`. Where no row has two segments, padding behind a segment attends to that too:
    nothing reads what comes out there. ``implementation``: "cudnn", or "xla" for the same on any device.
    """
    causal = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation=implementation)
    if segments is None:
        return causal(query, key, value)
    T = query.shape[1]
    if T % 2:  # cuDNN has no gradient with a bias for odd lengths
        widths = [(0, 0), (0, 1), (0, 0), (0, 0)]
        query, key, value = (jnp.pad(x, widths) for x in (query, key, value))
        bias = jnp.pad(bias, [(0, 0), (0, 0), (0, 1), (0, 1)])
    starts = (segments[:, 1:] != segments[:, :-1]) & (segments[:, 1:] > 0)
    return jax.lax.cond(starts.any(), _biased(causal), lambda *x: causal(*x[:3]), query, key, value, bias)[:, :T]


def _biased(attend):
    """``attend`` with the bias [B 1 T T] behind query, key and value."""
    return lambda query, key, value, bias: attend(query, key, value, bias)


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """:func:`attend_segments` of query [B T H K], key and value [B N T K] on the mesh that is set."""
    arrays = [query, key.swapaxes(1, 2), value.swapaxes(1, 2)]
    letters = ["BTHK", "BTNK", "BTNK"]
    if segments is None:
        return per_device(lambda *x: attend_segments(*x, None, None), letters, "BTHK")(*arrays)
    return per_device(attend_segments, [*letters, "BT", "B1TS"], "BTHK")(*arrays, segments, bias)


def attend_past(
    query: jax.Array, past: KVCache, new: KeyValue, layer: jax.Array | None, order: Order, reach: int
) -> jax.Array:
    """:func:`attention.attend_past`, with cuDNN where the cache is still empty, which is the prompt, and not in int8.

    A pass of decoding reads the cache in the order [B N S K], which cuDNN's function would copy; it is left to XLA.
    """
    if reach or not isinstance(new[0], jax.Array) or not supports(query.shape[-1], query.dtype):
        return attention.attend_past(query, past, new, layer, order, reach)
    return attend_prompt(query, past, new, order)


def attend_prompt(
    query: jax.Array, past: KVCache, new: KeyValue, order: Order, implementation: str = "cudnn"
) -> jax.Array:
    """:func:`attention.attend_past` of the first T tokens of each row; ``implementation`` as of :func:`attend_segments`."""
    length, start = (jnp.broadcast_to(x, len(query))[:, None, None] for x in (past.length, past.visible_from))
    run = functools.partial(jax.nn.dot_product_attention, implementation=implementation)

    def attend(query, key, value, mask):
        return run(query, key.swapaxes(1, 2), value.swapaxes(1, 2), mask=mask[:, None])

    mask = earlier_tokens(order, length, start)
    return per_device(attend, ("BTHK", "BNTK", "BNTK", "BTS"), "BTHK")(query, *new, mask)

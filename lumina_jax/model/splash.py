"""Attention on TPU: Pallas kernels for QK-norm, rotation and causal softmax, each device on its own rows and heads.

The softmax is that of flash.py. Rows too long for it to hold a head in VMEM take JAX's splash attention, with its fused backward
pass.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from lumina_jax.model.block import Attention
from lumina_jax.model.flash import LANES, Tiles, flash_attend
from lumina_jax.model.parts import Angles, QKNorm
from lumina_jax.model.rotation import norm_rotate, whole_angles
from lumina_jax.sharding import axis_size, device_kind, per_device, platform

LONGEST = 6144
"""Tokens of a row up to which a head, forward and backward, fits into the 64 MiB of the smallest VMEM (v5p, tpu7x)."""
LARGEST_BLOCK = 768
STRIP = 128
WIDE = ("TPU v6 lite", "TPU7x")
"""Kinds of chip whose matrix units are 256 wide, and so are strips. There the forward pass takes larger blocks: a head of 1,280
tokens costs 3,020 bundles in one block of 1280, 3,650 in two of 640. The backward pass would gain 7% (6,470 for 6,940), but takes
thrice as long to compile."""
WIDE_LARGEST_BLOCK, WIDE_STRIP = 1280, 256
BLOCK_OVERHEAD, DIAGONAL_OVERHEAD, DIAGONAL_SHARE = 50_000, 200_000, 0.65
"""Cost of a block besides its scores, under the diagonal and on it, in units of one score, and the share of its scores that a block
on the diagonal computes: from the compiled kernels of blocks 256 to 1280 on v5p and v6e."""


def splash_attend(attention: Attention, x: jax.Array, angles: Angles, segments: jax.Array | None) -> jax.Array:
    """[B T D] -> [B T HK]: causal attention within segments, from the input of ``attention`` up to its output matrix.

    Between both, heads lie side by side, as products with matrices give and take them: nothing is transposed.

    ``segments`` are i32[B T] (None: one segment a row). Off TPU the kernels are interpreted.
    """
    columns = attention.columns(x)
    B, T, K = *x.shape[:2], attention.q_norm.scale.shape[-1]
    forward, backward, length = tiles(T, device_kind())
    angles = (jnp.broadcast_to(x, (B, T, K)) for x in whole_angles(*angles))
    segments = jnp.ones((B, T), jnp.int32) if segments is None else segments
    arrays = [_pad(x, length) for x in (*columns, *angles, segments)]
    # Flash attention takes powers of 2, splash attention powers of e.
    scale = K**-0.5 * (math.log2(math.e) if length <= LONGEST else 1)
    norms = (*_rows(attention.q_norm, scale), *_rows(attention.k_norm))
    attend = functools.partial(_attend, forward=forward, backward=backward, interpret=platform() != "tpu")
    letters = ("BTH", "BTN", "BTN", "BTK", "BTK", "BT", "HK", "HK", "NK", "NK")
    return per_device(attend, letters, "BTH")(*arrays, *norms)[:, :T]


def tiles(T: int, kind: str = "") -> tuple[Tiles, Tiles, int]:
    """(forward, backward, the length that T is padded to) for a ``kind`` of device: those of fewest bundles of instructions.

    1280 is cut into 640s by the backward pass, 4352 is padded to 4480.
    """
    block = min(range(LANES, LARGEST_BLOCK + 1, LANES), key=functools.partial(_cost, T))
    length = -(-T // block) * block
    if kind not in WIDE:
        return (Tiles(block, STRIP),) * 2 + (length,)
    whole = [size for size in range(LANES, WIDE_LARGEST_BLOCK + 1, LANES) if length % size == 0]
    largest = min(whole, key=functools.partial(_cost, length))
    return Tiles(largest, WIDE_STRIP), Tiles(block, WIDE_STRIP), length


def _cost(T: int, block: int) -> float:
    """Of all blocks on and under the diagonal, in units of one score."""
    n = -(-T // block)
    return n * (n - 1) / 2 * (block**2 + BLOCK_OVERHEAD) + n * (DIAGONAL_SHARE * block**2 + DIAGONAL_OVERHEAD)


def _attend(query, key, value, cos, sin, segments, *norms, forward: Tiles, backward: Tiles, interpret: bool):
    """On one device: query [B T HK], key and value [B T NK], angles [B T K], segments i32[B T], rows of norms -> [B T HK]."""
    q_scale, q_bias, k_scale, k_bias = norms
    T, K = cos.shape[1:]
    bound = logit_bound(norms, query.shape[2] // K)
    query = norm_rotate(query, q_scale, q_bias, cos, sin, interpret)
    key = norm_rotate(key, k_scale, k_bias, cos, sin, interpret)
    if T > LONGEST:
        mixed = _splash(*(heads_apart(x, K) for x in (query, key, value)), segments, backward.block, interpret)
        return mixed.swapaxes(1, 2).reshape(query.shape)
    return flash_attend(query, key, value, segments, bound, forward, backward, interpret)


def heads_apart(x: jax.Array, K: int) -> jax.Array:
    """[B T HK] -> [B H T K]."""
    return x.reshape(*x.shape[:2], -1, K).swapaxes(1, 2)


def logit_bound(norms: tuple[jax.Array, ...], H: int) -> jax.Array:
    """f32[H]: no logit of a head can be larger, whatever the tokens, from scale and bias of its query and key norm [G' K] each.

    A normed vector has length sqrt(K) at most, so scale and bias make it max|scale| sqrt(K) + |bias| at most; a logit is at most
    the product of two such lengths. The last factor allows for the rounding of both to bfloat16.
    """

    def longest(scale: jax.Array, bias: jax.Array) -> jax.Array:
        K = scale.shape[-1]
        lengths = jnp.max(jnp.abs(scale), -1) * math.sqrt(K) + jnp.sqrt(jnp.sum(bias * bias, -1))
        return jnp.repeat(lengths, H // len(lengths))

    return longest(*norms[:2]) * longest(*norms[2:]) * (1 + 2**-6)


def _splash(query, key, value, segments, block: int, interpret: bool):
    """query [B H T K], key and value [B N T K] -> [B H T K] in steps that hold no more than a block of a head; logits to base e."""
    H, T = query.shape[1:3]
    sides = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    splash = kernels.make_splash_mha(
        mask=masks.MultiHeadMask([masks.CausalMask((T, T))] * H),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=kernels.BlockSizes(**dict.fromkeys(sides, block), use_fused_bwd_kernel=True),
        residual_checkpoint_name="mixed",
        interpret=interpret,
    )
    return jax.vmap(splash)(query, key, value, kernels.SegmentIds(segments, segments))


def _rows(norm: QKNorm, factor: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Scale and bias of ``norm`` times ``factor``, f32[G' K]: rows repeated until they divide over mesh axis tensor."""
    groups = norm.scale.shape[0]
    repeats = math.lcm(groups, axis_size("tensor")) // groups
    return tuple(jnp.repeat(p[...].astype(jnp.float32) * factor, repeats, 0) for p in (norm.scale, norm.bias))


def _pad(x: jax.Array, length: int) -> jax.Array:
    """x [B T ...] padded by zeros to ``length`` tokens; causal attention reads nothing behind a token."""
    return jnp.pad(x, [(0, (length - size) * (axis == 1)) for axis, size in enumerate(x.shape)])

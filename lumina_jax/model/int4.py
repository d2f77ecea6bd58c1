"""Weights of a model in int4 with a scale for each group of inputs: a quarter of the bytes that sampling reads for every token.

A step of 16 levels is coarse, so a scale serves GROUP inputs of an output channel and not all of them, as int8's does.
"""

import jax
import jax.numpy as jnp
import qwix
from flax import nnx

from lumina_jax.model.int8 import SUMMED, convert_matrices
from lumina_jax.model.params import GROUP_LETTER, Int4

GROUP = 64
"""Inputs that share a scale, which makes 4.25 bits a weight. It divides the MLP of the 7B over four devices, which 128 does not."""


def quantize_int4(matrix: jax.Array, letters: str, group: int = GROUP) -> Int4:
    """Symmetric int4 (qwix): the largest number of a group is 7.5 of its steps; scales are bfloat16.

    Groups of ``group`` lie along the last axis that products with ``letters``, a key of :data:`.int8.SUMMED`, sum over; an axis
    that they do not divide is one group. ``matrix`` may be stacked over layers: axes before those of ``letters``.
    """
    place = letters.index(SUMMED[letters][-1])
    axis = matrix.ndim - len(letters) + place
    size = group if matrix.shape[axis] % group == 0 else matrix.shape[axis]
    grouped = matrix.reshape(*matrix.shape[:axis], -1, size, *matrix.shape[axis + 1 :])
    channels = [other for other in range(grouped.ndim) if other != axis + 1]
    array = qwix.quantize(grouped, jnp.int4, channelwise_axes=channels, scale_dtype=jnp.bfloat16)
    split = letters[: place + 1] + GROUP_LETTER + letters[place + 1 :]
    return Int4(nnx.Param(array.qvalue, letters=split), nnx.Param(array.scale, letters=split))


def quantized_int4(model: nnx.Module, consume: bool = False) -> nnx.Module:
    """The model with the matrices of its blocks as int4 (:func:`quantize_int4`); ``consume`` as of :func:`.int8.quantized`."""
    return convert_matrices(model, quantize_int4, consume)

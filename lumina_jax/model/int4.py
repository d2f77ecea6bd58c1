"""Weights of a model in int4 with a scale for each group of inputs: a quarter of the bytes that sampling reads for every token.

A step of 16 levels is coarse, so a scale serves GROUP inputs of an output channel and not all of them, as int8's does.
"""

import jax
import jax.numpy as jnp
import qwix
from flax import nnx

from lumina_jax.model.int8 import SUMMED
from lumina_jax.model.params import Int4, is_param

GROUP = 64
"""Inputs that share a scale, which makes 4.25 bits a weight. It divides the MLP of the 7B over four devices, which 128 does not."""


def quantize_int4(matrix: jax.Array, letters: str, group: int = GROUP) -> Int4:
    """Symmetric int4 (qwix): the largest number of a group is 7.5 of its steps; scales are bfloat16.

    Groups of ``group`` lie along the last axis that products with ``letters``, a key of :data:`.int8.SUMMED`, sum over; an axis
    that they do not divide is one group. ``matrix`` may be stacked over layers: axes before those of ``letters``.
    """
    stacked = matrix.ndim - len(letters)
    grouped = stacked + letters.index(SUMMED[letters][-1])
    size = matrix.shape[grouped]
    tiles = {grouped: group if size % group == 0 else size}
    channels = [axis for axis in range(matrix.ndim) if axis != grouped]
    array = qwix.quantize(
        matrix,
        jnp.int4,
        channelwise_axes=channels,
        tiled_axes=tiles,
        calibration_method="absmax",
        scale_dtype=jnp.bfloat16,
    )
    return Int4(nnx.Param(array.qvalue, letters=letters), nnx.Param(array.scale, letters=letters))


def quantized_int4(model: nnx.Module, consume: bool = False) -> nnx.Module:
    """The model with the matrices of its blocks as int4 (:func:`quantize_int4`); ``consume`` as of :func:`.int8.quantized`."""
    compiled = jax.jit(quantize_int4, static_argnums=1)

    def convert(weight: nnx.Param) -> nnx.Param | Int4:
        letters = weight.get_metadata()["letters"]
        if letters not in SUMMED:
            return weight
        matrix = compiled(weight[...], letters)
        if consume:
            jax.block_until_ready(matrix)
            weight[...].delete()
        return matrix

    return jax.tree.map(convert, model, is_leaf=is_param)

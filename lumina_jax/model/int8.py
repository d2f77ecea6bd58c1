"""Matrices as int8 with a scale for each output channel: sampling reads every weight for every token, half the bytes this way."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import qwix
from flax import nnx

from lumina_jax.model.params import Int8, is_param

SUMMED = {"DHK": "D", "DNK": "D", "HKD": "HK", "DF": "D", "FD": "F"}
"""Letters of the matrices that become int8 -> the axes that their products sum over. Norms, embedding and head do not."""


def quantize(matrix: jax.Array, letters: str) -> Int8:
    """Symmetric int8 (qwix): the largest number of an output channel becomes 127 or -127 of its steps.

    ``matrix`` may be stacked over layers: axes before those of ``letters``, a key of :data:`SUMMED`, have scales of their own.
    """
    summed = SUMMED[letters]
    stacked = matrix.ndim - len(letters)
    axes = tuple(stacked + letters.index(letter) for letter in summed)
    channel_axes = [axis for axis in range(matrix.ndim) if axis not in axes]
    array = qwix.quantize(matrix, jnp.int8, channelwise_axes=channel_axes, scale_dtype=jnp.float32)
    channels = "".join(letter for letter in letters if letter not in summed)
    return Int8(nnx.Param(array.qvalue, letters=letters), nnx.Param(array.scale.squeeze(axes), letters=channels))


def quantized(model: nnx.Module, consume: bool = False) -> nnx.Module:
    """The model with the matrices of its blocks as int8 (:func:`quantize`).

    With ``consume`` each matrix of ``model`` is deleted as soon as it is converted: two models need not fit in memory.
    """
    return convert_matrices(model, quantize, consume)


def convert_matrices(
    model: nnx.Module, quantize: Callable[[jax.Array, str], nnx.Module], consume: bool = False
) -> nnx.Module:
    """The model with ``quantize(matrix, letters)`` in place of each matrix of its blocks; ``consume`` as of :func:`quantized`."""
    compiled = jax.jit(quantize, static_argnums=1)

    def convert(weight: nnx.Param) -> nnx.Param | nnx.Module:
        letters = weight.get_metadata()["letters"]
        if letters not in SUMMED:
            return weight
        matrix = compiled(weight[...], letters)
        if consume:
            jax.block_until_ready(matrix)
            weight[...].delete()
        return matrix

    return jax.tree.map(convert, model, is_leaf=is_param)


class LogitError(NamedTuple):
    """How far logits are from exact ones: root mean square ``rms``, the standard deviation ``spread`` of the exact ones, and the
    share of positions where the likeliest token is the ``same``."""

    rms: float
    spread: float
    same: float

    def __str__(self) -> str:
        off = f"logits off by {self.rms:.4f} (root mean square; {self.rms / self.spread:.2%} of their spread)"
        return f"{off}, likeliest token the same at {self.same:.1%}"


def logit_error(exact: jax.Array, logits: jax.Array) -> LogitError:
    """The error of ``logits`` f32[... V] against the ``exact`` ones of that shape."""
    same = jnp.argmax(exact, axis=-1) == jnp.argmax(logits, axis=-1)
    rms = jnp.sqrt(jnp.mean((logits - exact) ** 2))
    return LogitError(float(rms), float(jnp.std(exact)), float(jnp.mean(same)))

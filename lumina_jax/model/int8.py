"""Matrices as int8 with a scale for each output channel: sampling reads every weight for every token, and so half the bytes."""

from types import EllipsisType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import qwix
from flax import nnx

from lumina_jax.model.params import is_param

SUMMED = {"DHK": "D", "DNK": "D", "HKD": "HK", "DF": "D", "FD": "F"}
"""The matrices that become int8, by their letters, and the axes their products sum over. Norms, embedding and head do not."""


class Scaled(NamedTuple):
    """A matrix w = codes * scale: ``codes`` i8 by the matrix' own letters, ``scale`` f32 by those of its output channels."""

    codes: jax.Array
    scale: jax.Array


class Int8(nnx.Module):
    """What stands where a weight stood. Indexed like one, it gives the matrix as :class:`Scaled`."""

    def __init__(self, matrix: jax.Array, letters: str):
        """``matrix`` may be stacked over layers: axes before those of ``letters`` have scales of their own."""
        summed = SUMMED[letters]
        first = matrix.ndim - len(letters)
        axes = tuple(first + letters.index(letter) for letter in summed)
        kept = [axis for axis in range(matrix.ndim) if axis not in axes]
        made = qwix.quantize(matrix, jnp.int8, channelwise_axes=kept, scale_dtype=jnp.float32)
        self.codes = nnx.Param(made.qvalue, letters=letters)
        channels = "".join(letter for letter in letters if letter not in summed)
        self.scale = nnx.Param(made.scale.squeeze(axes), letters=channels)

    def __getitem__(self, whole: EllipsisType) -> Scaled:
        return Scaled(self.codes[whole], self.scale[whole])


def quantized(model: nnx.Module, consume: bool = False) -> nnx.Module:
    """The model with its blocks' matrices as int8, symmetric, each output channel scaled by its largest number (qwix).

    With ``consume`` each matrix of ``model`` is deleted as soon as its int8 stands: the two need not fit side by side.
    """

    @jax.jit(static_argnums=1)
    def convert(matrix: jax.Array, letters: str) -> Int8:
        return Int8(matrix, letters)

    def of(weight: nnx.Param) -> nnx.Param | Int8:
        letters = weight.get_metadata()["letters"]
        if letters not in SUMMED:
            return weight
        made = convert(weight[...], letters)
        if consume:
            jax.block_until_ready(made)
            weight[...].delete()
        return made

    return jax.tree.map(of, model, is_leaf=is_param)


class LogitError(NamedTuple):
    """How far logits are from the exact ones: root mean square, that of the exact ones around their mean, and how often the
    likeliest token is the same."""

    rms: float
    spread: float
    same: float

    def __str__(self) -> str:
        off = f"logits off by {self.rms:.4f} (root mean square; {self.rms / self.spread:.2%} of their spread)"
        return f"{off}, likeliest token the same at {self.same:.1%}"


def logit_error(exact: jax.Array, given: jax.Array) -> LogitError:
    """Of logits f32[... V] against ``exact`` ones."""
    same = jnp.argmax(exact, axis=-1) == jnp.argmax(given, axis=-1)
    parts = jnp.sqrt(jnp.mean((given - exact) ** 2)), jnp.std(exact), jnp.mean(same)
    return LogitError(*map(float, parts))

"""How a weight is born: value and axis letters in one line, ``weight(rngs, D=4096, H=32, K=128)``."""

import hashlib
import math
from types import EllipsisType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


def weight(rngs: nnx.Rngs, *, fan_in: str = "", **sizes: int) -> nnx.Param:
    """A float32 weight with one axis per keyword; the letters are kept as metadata for sharding and conversion.

    Normally distributed with variance 1 / (product of the ``fan_in`` axes; by default the first axis).
    """
    letters = "".join(sizes)
    inputs = math.prod(sizes[letter] for letter in fan_in or letters[0])
    value = jax.random.normal(rngs.params(), tuple(sizes.values()), jnp.float32) * (1.0 / math.sqrt(inputs))
    return nnx.Param(value, letters=letters)


def ones(**sizes: int) -> nnx.Param:
    """A float32 weight of ones."""
    return nnx.Param(jnp.ones(tuple(sizes.values()), jnp.float32), letters="".join(sizes))


def zeros(**sizes: int) -> nnx.Param:
    """A float32 weight of zeros."""
    return nnx.Param(jnp.zeros(tuple(sizes.values()), jnp.float32), letters="".join(sizes))


GROUP_LETTER = "g"
"""The axis of the numbers that share a scale, behind that of the groups."""


class Scaled(NamedTuple):
    """A matrix w = codes * scale: ``codes`` i8 by the matrix' own letters, ``scale`` f32 by those of its output channels."""

    codes: jax.Array
    scale: jax.Array


class Int8(nnx.Module):
    """An int8 matrix in the place of a weight (int8.quantized makes it). Indexed like one, it gives :class:`Scaled`."""

    def __init__(self, codes: nnx.Param, scale: nnx.Param):
        self.codes = codes
        self.scale = scale

    def __getitem__(self, whole: EllipsisType) -> Scaled:
        return Scaled(self.codes[whole], self.scale[whole])


class Grouped(NamedTuple):
    """A matrix of int4 ``codes`` in groups: the last axis that products sum over is two, the groups and the numbers of one.

    ``scale`` bf16 has a number for each group, and a one in the place of the second axis.
    """

    codes: jax.Array
    scale: jax.Array

    def matrix(self, dtype: jnp.dtype) -> jax.Array:
        """w = codes * scale, in groups: no axis moves, so that compilers fuse it into the product that reads it."""
        return self.codes.astype(dtype) * self.scale.astype(dtype)


class Int4(nnx.Module):
    """An int4 matrix in the place of a weight (int4.quantized_int4 makes it). Indexed like one, it gives :class:`Grouped`."""

    def __init__(self, codes: nnx.Param, scale: nnx.Param):
        self.codes = codes
        self.scale = scale

    def __getitem__(self, whole: EllipsisType) -> Grouped:
        return Grouped(self.codes[whole], self.scale[whole])


def is_param(node: object) -> bool:
    """For ``is_leaf=``: stops a tree walk at weights, so that their letters are at hand."""
    return isinstance(node, nnx.Variable)


def count(tree) -> int:
    """The number of entries of all arrays of a tree of weights (or of their shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def fingerprint(tree) -> str:
    """16 hex digits of the names, shapes, dtypes and values of a tree of weights, the same on every mesh.

    Values enter as the sum of their bits, array by array, summed on the devices that have them: nothing is gathered. A permutation
    of the values of one array is not noticed.
    """
    named, _ = jax.tree_util.tree_flatten_with_path(tree)
    sums = jax.device_get(_bit_sums([leaf for _, leaf in named]))
    digest = hashlib.sha256()
    for (path, leaf), bits in zip(named, sums, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(repr((name, tuple(leaf.shape), str(leaf.dtype), int(bits))).encode())
    return digest.hexdigest()[:16]


@jax.jit
def _bit_sums(arrays: list[jax.Array]) -> list[jax.Array]:
    """u32 for each array: the bits of its values, read as unsigned integers, summed modulo 2³², which is exact in any order."""

    def bit_sum(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.int8) if x.dtype == jnp.int4 else x
        return jnp.sum(jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}"), dtype=jnp.uint32)

    # XLA for CPUs stores the bits before it sums them, so it gets those of one layer at a time.
    return [jnp.sum(jax.lax.map(bit_sum, x)) if x.ndim > 2 else bit_sum(x) for x in arrays]

"""How a weight is born: value and axis letters in one line, ``weight(rngs, D=4096, H=32, K=128)``."""

import math

import jax
import jax.numpy as jnp
from flax import nnx


def weight(rngs: nnx.Rngs, *, fan_in: str = "", scale: float = 1.0, **sizes: int) -> nnx.Param:
    """A float32 weight with one axis per keyword, its letters kept as metadata for sharding and conversion.

    Normal with variance ``scale²`` / (product of the ``fan_in`` axes; by default the first axis).
    """
    letters = "".join(sizes)
    inputs = math.prod(sizes[letter] for letter in fan_in or letters[0])
    value = jax.random.normal(rngs.params(), tuple(sizes.values()), jnp.float32) * (scale / math.sqrt(inputs))
    return nnx.Param(value, letters=letters)


def ones(**sizes: int) -> nnx.Param:
    """A float32 weight of ones."""
    return nnx.Param(jnp.ones(tuple(sizes.values()), jnp.float32), letters="".join(sizes))


def zeros(**sizes: int) -> nnx.Param:
    """A float32 weight of zeros."""
    return nnx.Param(jnp.zeros(tuple(sizes.values()), jnp.float32), letters="".join(sizes))


def is_param(node: object) -> bool:
    """For ``is_leaf=``: stop a tree walk at whole weights, letters included."""
    return isinstance(node, nnx.Variable)


def count(tree) -> int:
    """How many numbers a tree of weights (or of their shapes) holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

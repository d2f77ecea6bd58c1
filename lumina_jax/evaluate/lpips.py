"""LPIPS: how different two pictures look, by the features of a network for photographs (Zhang et al. 2018, arXiv 1801.03924).

The features of both pictures behind five convolutions are divided by their length at every place; what is left of their squared
difference is weighted by learned weights, one a channel, averaged over the picture, and summed over the five.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.errors import InputError

MEAN, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the three colours from -1 to 1: ImageNet's mean and deviation as the published weights expect them."""
EPS = 1e-10
TAPS = 5


class BackboneConv(NamedTuple):
    """A convolution of the backbone, its place ``index`` in torchvision's ``features``, followed by a ReLU.

    Where ``pool`` is not 0, a max-pooling of ``pool`` x ``pool`` at every second pixel comes before it; where it is a ``tap``, its
    output is compared.
    """

    index: int
    pool: int = 0
    tap: bool = False
    stride: int = 1
    padding: int = 1


NETWORKS: dict[str, tuple[BackboneConv, ...]] = {
    "AlexNet": (
        BackboneConv(0, tap=True, stride=4, padding=2),
        BackboneConv(3, pool=3, tap=True, padding=2),
        BackboneConv(6, pool=3, tap=True),
        BackboneConv(8, tap=True),
        BackboneConv(10, tap=True),
    ),
    "VGG16": (
        BackboneConv(0),
        BackboneConv(2, tap=True),
        BackboneConv(5, pool=2),
        BackboneConv(7, tap=True),
        BackboneConv(10, pool=2),
        BackboneConv(12),
        BackboneConv(14, tap=True),
        BackboneConv(17, pool=2),
        BackboneConv(19),
        BackboneConv(21, tap=True),
        BackboneConv(24, pool=2),
        BackboneConv(26),
        BackboneConv(28, tap=True),
    ),
}
"""Backbone -> its convolutions up to the last tap."""


class Weights(NamedTuple):
    """Per convolution ``kernels`` f32[O I Y X] and ``biases`` f32[O]; per tap ``heads`` f32[O]."""

    kernels: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    heads: tuple[jax.Array, ...]


@dataclass(frozen=True)
class Lpips:
    """LPIPS with the weights of one backbone of NETWORKS."""

    network: str
    weights: Weights

    @classmethod
    def of(cls, heads: Mapping[str, np.ndarray], backbone: Mapping[str, np.ndarray]) -> "Lpips":
        """From arrays by the names of the published files: ``heads`` as in lpips/weights/v0.1/alex.pth or vgg.pth
        (``lin0.model.1.weight`` [1 C 1 1]), ``backbone`` as in torchvision's alexnet or vgg16 (``features.0.weight`` [O I Y X]).

        Raises InputError naming the first weight that is missing or whose shape belongs to another network.
        """
        for network, convs in NETWORKS.items():
            if all(f"features.{conv.index}.weight" in backbone for conv in convs):
                return cls(network, _weights(network, heads, backbone))
        raise InputError(
            f"{len(backbone)} weights ({', '.join(list(backbone)[:3])} ...) are those of no backbone of LPIPS; give torchvision's "
            f"{' or '.join(NETWORKS)}"
        )

    def __call__(self, first: np.ndarray, second: np.ndarray) -> float:
        """The distance of two pictures u8[Y X 3], 0 when equal. Raises InputError for sizes that differ or are below 32 px."""
        if first.shape != second.shape or min(first.shape[:2]) < 32:
            raise InputError(
                f"pictures of {first.shape[1]}x{first.shape[0]} and {second.shape[1]}x{second.shape[0]} px; LPIPS compares "
                "pictures of one size of at least 32x32"
            )
        return float(_distance(self.weights, np.stack([first, second]), NETWORKS[self.network]))


def _weights(network: str, heads: Mapping[str, np.ndarray], backbone: Mapping[str, np.ndarray]) -> Weights:
    def read(state: Mapping[str, np.ndarray], name: str, *shape: int | None) -> np.ndarray:
        """``state[name]``; a dimension of ``shape`` that is None may have any size."""
        if name not in state:
            raise InputError(f"the weights of LPIPS lack {name}; give the published files")
        array = np.asarray(state[name], np.float32)
        if len(array.shape) != len(shape) or any(
            want not in (None, have) for want, have in zip(shape, array.shape, strict=True)
        ):
            expected = " x ".join("any" if size is None else str(size) for size in shape)
            raise InputError(
                f"{name} has the shape {array.shape}, but {network} needs {expected}; give files of one network"
            )
        return array

    convs, channels = NETWORKS[network], 3
    kernels, biases, lengths = [], [], []
    for conv in convs:
        kernel = read(backbone, f"features.{conv.index}.weight", None, channels, None, None)
        channels = len(kernel)
        kernels.append(kernel)
        biases.append(read(backbone, f"features.{conv.index}.bias", channels))
        lengths += [channels] * conv.tap
    linear = [
        read(heads, f"lin{number}.model.1.weight", 1, length, 1, 1).ravel() for number, length in enumerate(lengths)
    ]
    return Weights(*(tuple(map(jnp.asarray, arrays)) for arrays in (kernels, biases, linear)))


@partial(jax.jit, static_argnames="convs")
def _distance(weights: Weights, pair: jax.Array, convs: Sequence[BackboneConv]) -> jax.Array:
    """f32[] of the two pictures u8[2 Y X 3]."""
    x = (pair / 127.5 - 1 - jnp.array(MEAN)) / jnp.array(SCALE)
    x, taps = jnp.moveaxis(x, -1, 1), []
    for conv, kernel, bias in zip(convs, weights.kernels, weights.biases, strict=True):
        if conv.pool:
            window, strides = (1, 1, conv.pool, conv.pool), (1, 1, 2, 2)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "VALID")
        padding = [(conv.padding, conv.padding)] * 2
        x = jax.lax.conv_general_dilated(x, kernel, (conv.stride, conv.stride), padding, precision="highest")
        x = jax.nn.relu(x + bias[:, None, None])
        taps += [x] * conv.tap
    return sum(_difference(tap, head) for tap, head in zip(taps, weights.heads, strict=True))


def _difference(features: jax.Array, head: jax.Array) -> jax.Array:
    """f32[] of the features f32[2 C Y X] and the weights f32[C] of one tap."""
    first, second = features / (jnp.sqrt(jnp.sum(features**2, axis=1, keepdims=True)) + EPS)
    return jnp.mean(jnp.einsum("C,CYX->YX", head, (first - second) ** 2))

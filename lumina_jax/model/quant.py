"""Quantized training: the products of a block's matrices over int8 or fp8 codes, but for the gradients of weights.

Every operand is scaled anew so that its largest number becomes the largest code: activations and their gradients by token, weights
by output channel. A scale must be constant along what a product sums over; where it is not, it is multiplied into the other
operand before that is rounded. So the codes of w serve two products (E is the gradient of the output y)::

    y  = sum over channels of x, codes of x * codes of w               * scale of x [token] * scale of w [channel]
    dx = sum over channels of y, codes of (E * scale of w) * codes of w * its own scale [token]
    dw = sum over tokens,        x * E                                  in the dtype of x

The third is not over codes: along tokens neither x nor E has a scale, both would be read and rounded once more, and TPUs
multiply transposed codes at no more than the speed of bfloat16 (0.20 to 0.30 of the peak of int8 in a 7B step on v6e).

Weights and optimizer stay float32, everything between products keeps its dtype, sums of int8 codes are exact (int32).
A device quantizes its part of a weight before the weight is gathered, so that codes travel: half the bytes of bfloat16. Its part
of dw is summed over devices in the dtype of the weights.

Codes of E are rounded stochastically to int8, by noise that is uniform for every number and independent between any two of them
(:func:`noise`): a gradient is then right in the mean, and its variance that of independent rounding.
Dynamic symmetric scales, the folding of a scale and rounding of gradients by noise are as in AQT and qwix.
"""

import functools
import itertools
from dataclasses import dataclass, replace
from types import EllipsisType

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lumina_jax.errors import InputError
from lumina_jax.sharding import COMPUTE, STORE, all_gather, gathered, per_device, pmax, psum, psum_scatter

CODES = {"int8": (jnp.int8, 127.0, jnp.int32), "fp8": (jnp.float8_e4m3fn, 448.0, jnp.float32)}
"""``mesh.quant`` -> dtype of codes, the largest code, dtype of sums. Fp8 keeps 4 bits of a mantissa, gradients included: each token
has its own scale, so that e5m2's larger range is not needed."""
MATRICES = ("DHK", "DNK", "HKD", "DF", "FD")
"""Letters of the matrices that are quantized. Norms, embedding and head are not."""
SMALLEST = 1e-30
"""Added to a scale: that of zeros alone."""
NOT_FASTER = {
    "int8": ("TPU v2", "TPU v3", "TPU v4", "TPU7x"),
    "fp8": ("TPU v2", "TPU v3", "TPU v4", "TPU v5", "TPU v6"),
}
"""Kind of codes -> how the device_kind begins of the TPUs that multiply them no faster than bfloat16. TPU7x is Ironwood."""


def check_quant(kind: str, device_kind: str) -> None:
    """Raises InputError when a TPU of ``device_kind`` (as jax.Device names it) gains nothing by ``kind``. Other devices emulate."""
    if device_kind.startswith(NOT_FASTER.get(kind, ())):
        others = [other for other, without in NOT_FASTER.items() if not device_kind.startswith(without)]
        raise InputError(
            f"mesh.quant={kind!r}, but a {device_kind} multiplies {kind} no faster than bfloat16 and would only lose precision; "
            f"set mesh.quant={' or '.join([*others, 'none'])}"
        )


@dataclass(frozen=True)
class Quantized:
    """A matrix of a block, split by STORE, whose products are quantized; indexed like a weight, it gives itself.

    ``kind`` is a key of :data:`CODES`. The rounding of gradients is drawn from ``key``; without one it is to the nearest.
    """

    stored: jax.Array
    kind: str
    key: jax.Array | None

    def __getitem__(self, whole: EllipsisType) -> "Quantized":
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the matrix."""
        return self.stored.shape

    def reshape(self, *shape: int) -> "Quantized":
        """The same numbers as a matrix whose heads and their size are one axis."""
        return replace(self, stored=self.stored.reshape(shape))


def for_quantized_compute(block, kind: str, key: jax.Array | None):
    """:func:`sharding.for_compute` whose matrices are :class:`Quantized`, each with a key of its own."""
    numbers = itertools.count()

    def convert(node):
        letters = node.get_metadata()["letters"]
        if letters not in MATRICES:
            return node.replace(gathered(node[...], letters))
        number = next(numbers)
        return Quantized(node[...], kind, None if key is None else jax.random.fold_in(key, number))

    return jax.tree.map(convert, block, is_leaf=lambda node: hasattr(node, "get_metadata"))


def quantized_product(letters: str, x: jax.Array, w: Quantized) -> jax.Array:
    """``jnp.einsum(letters, x, w)`` over codes, in the dtype of x; so are its gradients."""
    return _product(letters, w.kind, x, w.stored, w.key)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(letters: str, kind: str, x: jax.Array, w: jax.Array, key: jax.Array | None) -> jax.Array:
    inputs, weights, outputs = letters.replace("->", ",").split(",")
    summed = _common(inputs, weights)

    def run(x: jax.Array, w: jax.Array) -> jax.Array:
        x, x_scale = quantize(x, inputs, summed, kind)
        w, w_scale = _gathered_codes(w, weights, summed, kind)
        y = _einsum(f"{inputs},{weights}->{outputs}", x, w, (x_scale, inputs, summed), (w_scale, weights, summed))
        return _sum_over(summed, y.astype(dtype))

    dtype = x.dtype
    return per_device(run, (inputs, _stored(weights)), outputs)(x, w)


def _product_gradient(letters: str, kind: str, saved: tuple, change: jax.Array):
    """The gradients of x and w; the codes of w are computed again."""
    x, w, key = saved
    inputs, weights, outputs = letters.replace("->", ",").split(",")
    summed, tokens, channels = _common(inputs, weights), _common(inputs, outputs), _common(weights, outputs)

    def run(x: jax.Array, w: jax.Array, change: jax.Array, *drawn: jax.Array):
        dw = jnp.einsum(f"{inputs},{outputs}->{weights}", x, change).astype(w.dtype)
        dw = psum(psum_scatter(dw, "fsdp", weights.index("D")), "replica")
        w, w_scale = _gathered_codes(w, weights, summed, kind)
        added = noise(outputs, tokens, channels, *drawn) if drawn else 0.5
        change = _times(change.astype(jnp.float32), outputs, w_scale, weights, summed)
        codes, scale = quantize(change, outputs, channels, kind, added)
        dx = _einsum(f"{outputs},{weights}->{inputs}", codes, w, (scale, outputs, channels)).astype(x.dtype)
        return _sum_over(channels, dx), dw

    drawn = ()
    if key is not None and kind == "int8":
        shapes = (
            [size for letter, size in zip(outputs, change.shape, strict=True) if letter in side]
            for side in (tokens, channels)
        )
        drawn = [jax.random.uniform(k, shape) for k, shape in zip(jax.random.split(key), shapes, strict=True)]
    parts = (inputs, _stored(weights), outputs, *((tokens, channels) if drawn else ()))
    dx, dw = per_device(run, parts, (inputs, _stored(weights)))(x, w, change, *drawn)
    return dx, dw, None


_product.defvjp(lambda letters, kind, x, w, key: (_product(letters, kind, x, w, key), (x, w, key)), _product_gradient)


def quantize(
    x: jax.Array,
    letters: str,
    summed: str,
    kind: str,
    added: jax.Array | float = 0.5,
    over: tuple[str, ...] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(codes, f32 scale) of x: codes * scale is x but for rounding; the scale has x's axes, those ``summed`` over with size 1.

    ``added`` in [0, 1) is added before int8 codes are rounded down: 0.5 rounds to the nearest. A scale is common to the devices
    along the mesh axes ``over``, by default those that split an axis of ``summed``.
    """
    dtype, largest, _ = CODES[kind]
    over = _split(summed) if over is None else over
    axes = tuple(letters.index(letter) for letter in summed)
    scale = jnp.max(jnp.abs(x), axes, keepdims=True).astype(jnp.float32)
    scale = (pmax(scale, over) if over else scale) / largest + SMALLEST
    codes = x.astype(jnp.float32) * (1 / scale)
    if kind == "int8":
        codes = jnp.floor(codes + added)
    return jnp.clip(codes, -largest, largest).astype(dtype), scale


def noise(letters: str, tokens: str, channels: str, by_token: jax.Array, by_channel: jax.Array) -> jax.Array:
    """f32 with the axes ``letters``, uniform in [0, 1): the sum of what was drawn for the token and for the channel, modulo 1.

    Any two of these numbers are independent (one of the two summands differs, and is uniform), so that sums over them have the
    variance of independent numbers; but only tokens + channels are drawn, and a number is added where it is used.
    """
    by_token, by_channel = _spread(by_token, tokens, letters), _spread(by_channel, channels, letters)
    total = by_token + by_channel
    return jnp.where(total >= 1, total - 1, total)


def _gathered_codes(w: jax.Array, letters: str, summed: str, kind: str) -> tuple[jax.Array, jax.Array]:
    """Codes and scale of the whole weight along fsdp, of which w is this device's part."""
    codes, scale = quantize(w, letters, summed, kind, over=_split(summed, STORE))
    axis = letters.index("D")
    return all_gather(codes, "fsdp", axis), scale if "D" in summed else all_gather(scale, "fsdp", axis)


def _einsum(letters: str, a: jax.Array, b: jax.Array, *scales: tuple[jax.Array, str, str]) -> jax.Array:
    """The product of codes times ``scales``, each with its letters and those along which it has size 1, in float32."""
    sums = CODES["int8" if a.dtype == jnp.int8 else "fp8"][2]
    y = jnp.einsum(letters, a, b, preferred_element_type=sums).astype(jnp.float32)
    for scale, own, summed in scales:
        y = _times(y, letters.partition("->")[2], scale, own, summed)
    return y


def _times(y: jax.Array, letters: str, scale: jax.Array, own: str, summed: str) -> jax.Array:
    """y times a scale with the axes ``own``, of which those ``summed`` over are left out."""
    kept = "".join(letter for letter in own if letter not in summed)
    squeezed = scale.squeeze(tuple(own.index(letter) for letter in summed))
    return y * _spread(squeezed, kept, letters)


def _spread(x: jax.Array, own: str, letters: str) -> jax.Array:
    """x, whose axes ``own`` are some of ``letters`` in the same order, with axes of size 1 for the others."""
    return jnp.expand_dims(x, tuple(i for i, letter in enumerate(letters) if letter not in own))


def _sum_over(summed: str, x: jax.Array) -> jax.Array:
    """x summed over the devices that each have a part of the axes ``summed``."""
    return psum(x, axes) if (axes := _split(summed)) else x


def _split(letters: str, rules: dict = COMPUTE) -> tuple[str, ...]:
    """The mesh axes that split ``letters``; rows apart."""
    return tuple({rules[letter]: None for letter in letters if letter in rules and letter not in "B"})


def _common(some: str, others: str) -> str:
    return "".join(letter for letter in some if letter in others)


def _stored(letters: str) -> P:
    return P(*(STORE.get(letter) for letter in letters))

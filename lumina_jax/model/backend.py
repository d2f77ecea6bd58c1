"""The one place that knows on which kind of device the model runs: the form of each function that is fastest there.

:class:`DeviceJit` compiles with the options of that device.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lumina_jax.model import attention, cached_attention, cpu, cudnn, parts, tpu
from lumina_jax.sharding import device_kind, platform


class Backend(NamedTuple):
    """The functions of one kind of device; by default their plain definitions, which all other forms equal but for rounding."""

    einsum: Callable[[str, jax.Array, jax.Array], jax.Array] = jnp.einsum
    """Of activations and a weight whose first axes are the last ones of the activations."""
    swiglu: Callable[[jax.Array, jax.Array], jax.Array] = parts.swiglu
    rotary: Callable[[jax.Array, int, float, jnp.dtype], parts.Angles] = parts.rotary
    attend_causal: Callable[..., jax.Array] = attention.attend
    attend_past: Callable[..., jax.Array] = attention.attend_past
    reaches: Callable[[int, attention.KVCache, attention.Reaches], attention.Reaches] = attention.same_reaches
    """Of new tokens and a stacked cache: the cache lengths to compile :attr:`attend_past` for."""
    write_slots: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = attention.write_slots
    select: Callable[[jax.Array, jax.Array], jax.Array] = parts.select
    attention_kernel: str = "plain"
    """What ``mesh.attention`` "auto" stands for where the model's sizes allow it."""
    run_unstacked: Callable | None = None
    """A loop over layers with arrays of their own that decodes faster than a scan over stacked ones."""
    draft_window: int = 16
    """Tokens of a decoding pass with drafts. Memory-bound devices verify extra tokens for free."""
    narrow_passes: bool = False
    """Whether a decoding pass should hold no token that is not needed, since each takes time."""
    single_device_options: dict[str, str] | None = None
    """Compiler options for the train step on one device; those of TPUs (:mod:`.tpu`) are for every program and mesh."""


CPU = Backend(
    einsum=cpu.einsum,
    swiglu=cpu.swiglu,
    rotary=cpu.rotary,
    attend_causal=cpu.attend_causal,
    attend_past=cpu.attend_past,
    write_slots=cpu.write_slots,
    select=cpu.select,
    run_unstacked=cpu.run_unstacked,
    draft_window=10,
    narrow_passes=True,
    single_device_options=cpu.SINGLE_DEVICE_OPTIONS,
)
BACKENDS = {
    "cpu": CPU,
    "tpu": Backend(
        attention_kernel="splash", attend_past=cached_attention.attend_past, reaches=cached_attention.reaches
    ),
    "gpu": Backend(attention_kernel="cudnn", attend_past=cudnn.attend_past),
}
"""By the name of a platform; others take the plain definitions."""


def backend(mesh: Mesh | None = None) -> Backend:
    """That of the devices of ``mesh``, by default of those that programs are compiled for (:func:`sharding.platform`)."""
    return BACKENDS.get(platform() if mesh is None else mesh.devices.flat[0].platform, Backend())


def step_options(mesh: Mesh) -> dict[str, str] | None:
    """The compiler options of a train step on ``mesh``, for ``jax.jit(compiler_options=...)``."""
    options = tpu.compiler_options(mesh.devices.flat[0].device_kind)
    return options or (backend(mesh).single_device_options if mesh.size == 1 else None)


class DeviceJit:
    """``jax.jit(function, **arguments)`` with the compiler options of the TPU (:mod:`.tpu`) that a call compiles for.

    On a TPU it is the outermost jit of a program, since JAX takes options for whole programs only.
    """

    def __init__(self, function: Callable, **arguments: object):
        functools.update_wrapper(self, function)
        self._function, self._arguments = function, arguments
        self._by_kind: dict[str, jax.stages.Wrapped] = {}

    def jitted(self) -> jax.stages.Wrapped:
        """The jitted function for the devices of the mesh that is set, else for JAX's default ones."""
        kind = device_kind()
        if kind not in self._by_kind:
            options = tpu.compiler_options(kind)
            self._by_kind[kind] = jax.jit(self._function, compiler_options=options, **self._arguments)
        return self._by_kind[kind]

    def __call__(self, *args: object, **kwargs: object):
        return self.jitted()(*args, **kwargs)

    def lower(self, *args: object, **kwargs: object) -> jax.stages.Lowered:
        return self.jitted().lower(*args, **kwargs)

"""The one place that knows on which kind of device the model runs: the form of each function that is fastest there."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lumina_jax.model import attention, cpu, cudnn, parts
from lumina_jax.sharding import platform


class Backend(NamedTuple):
    """The functions of one kind of device; by default their plain definitions, which all other forms equal but for rounding."""

    einsum: Callable[[str, jax.Array, jax.Array], jax.Array] = jnp.einsum
    """Of activations and a weight whose first axes are the last ones of the activations."""
    swiglu: Callable[[jax.Array, jax.Array], jax.Array] = parts.swiglu
    rotary: Callable[[jax.Array, int, float, jnp.dtype], parts.Angles] = parts.rotary
    attend_causal: Callable[..., jax.Array] = attention.attend
    attend_past: Callable[..., jax.Array] = attention.attend_past
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
    """Compiler options for the train step on one device."""


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
    "tpu": Backend(attention_kernel="splash", attend_past=attention.attend_past_in_blocks),
    "gpu": Backend(attention_kernel="cudnn", attend_past=cudnn.attend_past),
}
"""By the name of a platform; others take the plain definitions."""


def backend(mesh: Mesh | None = None) -> Backend:
    """That of the devices of ``mesh``, by default of those that programs are compiled for (:func:`sharding.platform`)."""
    return BACKENDS.get(platform() if mesh is None else mesh.devices.flat[0].platform, Backend())

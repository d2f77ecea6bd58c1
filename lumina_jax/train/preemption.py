"""Whether a run must stop, because a process of it got SIGTERM."""

import signal
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lumina_jax.sharding import AXES


class Preemption:
    """Whether this run must stop: SIGTERM arrived here or in any other process.

    Each call starts a reduction over all processes and returns the result of the call before, so that all processes stop after
    the same step and none waits. JAX's preemption service cannot be used: Orbax asks it about old steps from a thread, after which
    processes disagree.
    """

    def __init__(self, mesh: Mesh):
        self._signaled, self._pending = False, None
        self._split = NamedSharding(mesh, P(AXES))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))
        self._old_handler = signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signaled = True

    def requested(self) -> bool:
        if jax.process_count() == 1:
            return self._signaled
        flags = np.full(jax.local_device_count(), self._signaled)
        previous, self._pending = self._pending, self._any(jax.make_array_from_process_local_data(self._split, flags))
        return previous is not None and bool(previous)

    def close(self) -> None:
        # The old handler is None when it was not set from Python; such a handler cannot be set again.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if self._old_handler is None else self._old_handler)

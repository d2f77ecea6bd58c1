"""Saving on time: ``save_minutes`` after the last save, by the clock of process 0, after the same step in all processes."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lumina_jax.sharding import AXES


class SaveClock:
    """Whether ``minutes`` have passed since the last save (0: never).

    Each call of :meth:`due` in a run of several processes starts a reduction over all of them and returns the result of the call
    before, so that all save after the same step and none waits.
    """

    def __init__(self, minutes: float, mesh: Mesh):
        self._seconds, self._last, self._pending = 60 * minutes, time.monotonic(), None
        self._split = NamedSharding(mesh, P(AXES))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))

    def due(self) -> bool:
        """Whether to save now; all processes call this after every step."""
        if not self._seconds:
            return False
        passed = jax.process_index() == 0 and time.monotonic() - self._last >= self._seconds
        if jax.process_count() == 1:
            return passed
        flags = np.full(jax.local_device_count(), passed)
        previous, self._pending = self._pending, self._any(jax.make_array_from_process_local_data(self._split, flags))
        return previous is not None and bool(previous)

    def saved(self) -> None:
        """A save has begun: the time counts from now."""
        self._last, self._pending = time.monotonic(), None

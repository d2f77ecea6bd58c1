"""Ends a run early: a signal to one process makes all of them save after the same step and leave."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lumina_jax.config import Experiment
from lumina_jax.faults import EXIT_RESTART
from lumina_jax.progress import print_line
from lumina_jax.sharding import AXES

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
"""The signals after which a run saves and leaves, as they are called."""


class Stopped(SystemExit):
    """A run that saved and leaves before its last step, with the exit code ``code``; ``line`` says how to go on."""

    def __init__(self, code: int, line: str):
        super().__init__(code)
        self.line = line

    @classmethod
    def by_signal(cls, number: int, cfg: Experiment, done: int) -> "Stopped":
        """After ``done`` steps, because of the signal ``number``: the exit code is 128 and that number."""
        line = f"{cfg.name}: stopped by {NAMES[number]}; step {done} is saved in {cfg.out}, the same command goes on from there"
        return cls(128 + number, line)

    @classmethod
    def for_slice(cls, number: int, cfg: Experiment, done: int) -> "Stopped":
        """After ``done`` steps, to be started again with slice ``number``, which is complete again."""
        return cls(EXIT_RESTART, f"{cfg.name}: slice {number} is back; step {done} is saved, start all again")


@contextmanager
def announced() -> Iterator[None]:
    """Prints the line of a :class:`Stopped` that leaves the block, in process 0: everything is saved then."""
    try:
        yield
    except Stopped as stopped:
        if jax.process_index() == 0:
            print_line(stopped.line)
        raise


class Stopping:
    """By which signal this run must stop: SIGTERM or Ctrl-C came here or in any other process. A second Ctrl-C is not held back.

    Each call starts a reduction over all processes and returns the result of the call before, so that all processes stop after
    the same step and none waits. JAX's preemption service cannot be used: Orbax asks it about old steps from a thread, after which
    processes disagree.
    """

    def __init__(self, mesh: Mesh):
        self._received, self._pending = 0, None
        self._split = NamedSharding(mesh, P(AXES))
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))
        self._old_handlers = {number: signal.signal(number, self._on_signal) for number in NAMES}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = max(self._received, int(number))
        if number == signal.SIGINT:
            # Not by print: the signal may have come inside of one.
            with suppress(OSError):
                os.write(2, b"Ctrl-C: saving after this step, then leaving; Ctrl-C again leaves at once\n")

    def requested(self) -> int:
        """The number of the signal, the same in all processes; 0 while there is none."""
        if jax.process_count() == 1:
            return self._received
        numbers = np.full(jax.local_device_count(), self._received, np.int32)
        previous, self._pending = (
            self._pending,
            self._largest(jax.make_array_from_process_local_data(self._split, numbers)),
        )
        return 0 if previous is None else int(previous)

    def close(self) -> None:
        """Gives the signals back to who had them."""
        for number, handler in self._old_handlers.items():
            # An old handler is None when it was not set from Python; such a handler cannot be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

"""The batches of a run on its devices."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jax.sharding import Mesh

from lumina_jax.batch import Batch
from lumina_jax.cluster.pace import StepTimes
from lumina_jax.cluster.processes import Group
from lumina_jax.sharding import global_batch

RECENT_STEPS = 3
"""Steps whose rows are kept on the host."""
SECONDS_BETWEEN_NAMES = 60.0
"""Between two lines that name the slowest process."""


class GlobalBatches:
    """Iterator over global batches on the devices, made from the rows of this process; tells ``group`` the current step.

    A batch is taken from ``host_batches``, which read ahead, and sent to the devices while they still run the step before.
    ``wait_seconds`` is how long the newest batch was waited for: near 0 unless reading is slower than training. ``recent`` are the
    rows of the last steps by step: the numbers of a step are read when later ones have begun. ``times`` are those of the steps, by
    which ``group`` notices one that takes too long and a process that makes the others wait.
    """

    def __init__(self, host_batches: Iterator[Batch], mesh: Mesh, start: int, group: Group, times: StepTimes):
        self._host_batches, self._mesh, self._step, self._group = host_batches, mesh, start, group
        self._times, self._device_seconds, self._named = times, 0.0, time.monotonic()
        self.wait_seconds = 0.0
        self.recent: dict[int, Batch] = {}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._step += 1
        self._group.doing(f"reading batch {self._step}", self._times.limit)
        start = time.monotonic()
        rows = next(self._host_batches)
        now = time.monotonic()
        self.wait_seconds = now - start
        self._times.add(now, self.wait_seconds, self._device_seconds)
        self._device_seconds = 0.0
        self._group.pace(self._times.pace)
        self._group.doing(f"step {self._step}", self._times.limit)
        self.recent = {step: batch for step, batch in self.recent.items() if step > self._step - RECENT_STEPS}
        self.recent[self._step] = rows
        return global_batch(rows, self._mesh)

    @contextmanager
    def waiting_for_devices(self) -> Iterator[None]:
        """A block that waits for the devices, and works little by itself."""
        start = time.monotonic()
        yield
        self._device_seconds += time.monotonic() - start

    def name_slowest(self, print_line: Callable[[str], None]) -> None:
        """Prints which process makes the others wait, if one does, at most every SECONDS_BETWEEN_NAMES."""
        now = time.monotonic()
        if now - self._named > SECONDS_BETWEEN_NAMES and (line := self._group.slowest()):
            self._named = now
            print_line(line)

"""The batches of a run on its devices."""

import time
from collections.abc import Iterator

from jax.sharding import Mesh

from lumina_jax.batch import Batch
from lumina_jax.cluster.processes import Group
from lumina_jax.sharding import global_batch

RECENT_STEPS = 3
"""Steps whose rows are kept on the host."""


class GlobalBatches:
    """Iterator over global batches on the devices, made from the rows of this process; tells ``group`` the current step.

    A batch is taken from ``host_batches``, which read ahead, and sent to the devices while they still run the step before.
    ``wait_seconds`` is how long the newest batch was waited for: near 0 unless reading is slower than training. ``recent`` are the
    rows of the last steps by step: the numbers of a step are read when later ones have begun.
    """

    def __init__(self, host_batches: Iterator[Batch], mesh: Mesh, start: int, group: Group):
        self._host_batches, self._mesh, self._step, self._group = host_batches, mesh, start, group
        self.wait_seconds = 0.0
        self.recent: dict[int, Batch] = {}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._step += 1
        self._group.doing(f"reading batch {self._step}")
        start = time.monotonic()
        rows = next(self._host_batches)
        self.wait_seconds = time.monotonic() - start
        self._group.doing(f"step {self._step}")
        self.recent = {step: batch for step, batch in self.recent.items() if step > self._step - RECENT_STEPS}
        self.recent[self._step] = rows
        return global_batch(rows, self._mesh)

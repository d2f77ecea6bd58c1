"""What a run does about numbers that are not finite and about spikes (GuardConfig).

The train step itself leaves the state alone where its loss or gradient is not finite (step.py); here the numbers of each step,
which all processes read alike and one step late, decide whether the run goes on, goes back or ends. No process asks another.
"""

import math
from collections import deque
from collections.abc import Mapping

from lumina_jax.config import GuardConfig
from lumina_jax.errors import NotFiniteError

WATCHED = ("xent", "grad_norm")
"""The numbers whose spikes are noticed."""
LEAST_STEPS = 20
"""Steps of a run before its mean and deviation mean anything."""
LEAST_DEVIATION = 1e-3
"""The least standard deviation, as a share of the mean: losses that hardly vary have no spikes of a thousandth."""


class GoBackError(Exception):
    """The run is to go back to its newest checkpoint, for the ``reason``, and past the batches up to that of ``step``."""

    def __init__(self, step: int, reason: str):
        super().__init__(f"step {step}: {reason}")
        self.step, self.reason = step, reason


class BadStepError(NotFiniteError):
    """The run ends, because ``step`` has no finite loss or gradient."""

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


class Guards:
    """Judges the numbers of each step, in order; the same in all processes. ``name`` is that of the run.

    After a start or a return the mean and the deviation begin anew: LEAST_STEPS steps are not judged for spikes.
    """

    def __init__(self, cfg: GuardConfig, name: str):
        self._cfg, self._name = cfg, name
        self._windows = {kind: _Window(cfg.spike_window) for kind in WATCHED}
        self._skipped = self._spiking = 0

    def judge(self, step: int, values: Mapping[str, float]) -> str:
        """What there is to say of ``step``, whose Metrics are ``values``; empty for most steps.

        Raises BadStepError, or GoBackError, where the GuardConfig says so.
        """
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            return self._not_finite(step, values)
        self._skipped = 0
        if not self._cfg.spike_z:
            return ""
        found = {kind: window.deviations(values[kind]) for kind, window in self._windows.items()}
        for kind, window in self._windows.items():
            window.add(values[kind], self._cfg.spike_z)
        spikes = [
            f"{kind} {values[kind]:.4g}, {z:.1f} standard deviations above its mean"
            for kind, z in found.items()
            if z > self._cfg.spike_z
        ]
        self._spiking = self._spiking + 1 if spikes else 0
        if not spikes or self._spiking != self._cfg.spike_steps:
            return ""
        reason = "a spike: " + " and ".join(spikes)
        if self._cfg.on_spike == "back":
            raise GoBackError(step, reason)
        return reason

    def _not_finite(self, step: int, values: Mapping[str, float]) -> str:
        numbers = f"the loss of step {step} is {values['loss']} (gradient norm {values['grad_norm']})"
        self._skipped += 1
        if self._cfg.nonfinite == "back":
            raise GoBackError(step, numbers)
        if self._cfg.nonfinite == "skip" and self._skipped <= self._cfg.max_skipped:
            return f"{numbers}: it is skipped, {self._skipped} of at most {self._cfg.max_skipped} in a row"
        in_a_row = f", as were {self._skipped - 1} before it" if self._skipped > 1 else ""
        raise BadStepError(
            step,
            f"{self._name}: {numbers}{in_a_row}; lower optim.lr, raise optim.z_loss or optim.warmup, or pass over such steps with "
            "guard.nonfinite=skip or back, then start again from the last checkpoint",
        )


class _Window:
    """The last ``size`` values, and how far a new one lies above their mean; sums are kept, so that a step costs nothing."""

    def __init__(self, size: int):
        self._values: deque[float] = deque()
        self._size, self._added, self._sum, self._squares = size, 0, 0.0, 0.0

    def deviations(self, value: float) -> float:
        """How many standard deviations ``value`` lies above the mean; 0 while there are too few values."""
        if len(self._values) < LEAST_STEPS:
            return 0.0
        mean, deviation = self._spread()
        return (value - mean) / deviation

    def add(self, value: float, most: float) -> None:
        """Adds ``value``, at most ``most`` deviations above the mean: a spike hides no later one, a new level is learned."""
        if len(self._values) >= LEAST_STEPS:
            mean, deviation = self._spread()
            value = min(value, mean + most * deviation)
        self._values.append(value)
        self._sum, self._squares = self._sum + value, self._squares + value**2
        if len(self._values) > self._size:
            oldest = self._values.popleft()
            self._sum, self._squares = self._sum - oldest, self._squares - oldest**2
        self._added += 1
        if self._added % self._size == 0:  # what rounding has left of values that are gone
            self._sum, self._squares = math.fsum(self._values), math.fsum(value**2 for value in self._values)

    def _spread(self) -> tuple[float, float]:
        mean = self._sum / len(self._values)
        variance = max(self._squares / len(self._values) - mean**2, 0.0)
        return mean, max(math.sqrt(variance), LEAST_DEVIATION * abs(mean), 1e-12)

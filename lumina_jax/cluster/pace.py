"""How fast a process steps: what a step may take, and which process makes the others wait."""

import statistics
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from lumina_jax.config import PodConfig

FEWEST, RECENT = 5, 101
"""Steps before their median says anything, and those that it is taken of."""
FACTOR, SHORTEST = 20.0, 120.0
"""A step may take so many times the median, and at least so many seconds: a store may hesitate for a minute."""
SHARE, SECONDS = 0.2, 0.05
"""A process is called slow when its own work exceeds that of the middle one by so much of a step, and by so many seconds."""


class Pace(NamedTuple):
    """Seconds of a recent step of one process: in all, waiting for its batch, and of own work, waiting for the batch included.

    All processes take the same time for a step, since they wait for each other; what one of them works by itself, while its
    devices have nothing to do, is what the others wait for.
    """

    step: float
    reading: float
    own: float


class StepTimes:
    """The steps of this process. ``limit`` seconds for a step are given, or follow from the steps so far where that is 0."""

    def __init__(self, limit: float, most: float):
        self._given, self._most = limit, most
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._last: float | None = None
        self.pace: Pace | None = None
        """Of the recent steps, each weighing a fifth less than the one after it."""

    def add(self, now: float, reading: float, device: float) -> None:
        """A step begins at ``now``, after ``reading`` s of waiting for its batch; before that the devices were waited for."""
        last, self._last = self._last, now
        if last is None:
            return
        seconds = now - last
        new = Pace(seconds, reading, max(seconds - device, reading))
        self._recent.append(seconds)
        old = self.pace or new
        self.pace = Pace(*(0.8 * before + 0.2 * value for before, value in zip(old, new, strict=True)))

    @classmethod
    def of(cls, limits: PodConfig) -> "StepTimes":
        """With the limits of a run's config."""
        return cls(limits.step_timeout, limits.stall_timeout)

    @property
    def limit(self) -> float:
        """Seconds that the next step may take; 0 while too few are known."""
        if self._given or len(self._recent) < FEWEST:
            return self._given
        return min(max(FACTOR * statistics.median(self._recent), SHORTEST), self._most)


def slowest(paces: Mapping[str, Pace]) -> str:
    """A line on the process with the most own work, when it holds the others up; empty when none does."""
    if len(paces) < 2:
        return ""
    name = max(paces, key=lambda process: paces[process].own)
    pace, middle = paces[name], statistics.median(pace.own for pace in paces.values())
    if pace.own - middle < max(SHARE * pace.step, SECONDS):
        return ""
    return (
        f"slowest: {name} works {pace.own:.2f} s of each step of {pace.step:.2f} s by itself, {pace.reading:.2f} s of it reading "
        f"(the middle process {middle:.2f} s)"
    )

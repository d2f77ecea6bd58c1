"""The knobs of a run of several processes: how long they wait for each other, and what they do without one of them."""

from dataclasses import dataclass

from lumina_jax.errors import require

MINIMA = {
    "join_timeout": 1,
    "stall_timeout": 1,
    "step_timeout": 0,
    "heartbeat_timeout": 5,
    "lease_timeout": 1,
    "elastic_wait": 1,
}
"""The least seconds of each limit."""


@dataclass(frozen=True)
class PodConfig:
    """How many seconds the processes of one run wait for each other; then the run ends and names the missing ones.

    ``join_timeout``: to join, to be compared, to come to a save; without progress for so long, what each process does is printed.
    ``stall_timeout``: to load, to compile, to save, and for the last save. ``step_timeout``: for a step that compiles nothing and
    for the reading of its batch; 0 is 20 times the median of the steps so far, at least 120 and at most ``stall_timeout``.
    ``heartbeat_timeout``: without a sign of life (the death of a process is noticed at once, that of its machine after so long).
    ``lease_timeout``: after so long without a sign of the run that holds ``out``, another takes the folder over.

    ``slices`` is the number of slices of equal size that the processes stand in, one slice after another. With ``elastic`` a run
    that lost a slice goes on without it: when all start again and a slice is not complete ``elastic_wait`` seconds later, the
    others begin, with fewer replicas. Once it is complete it is taken in after the next save.
    """

    join_timeout: float = 300
    stall_timeout: float = 1800
    step_timeout: float = 0
    heartbeat_timeout: float = 60
    lease_timeout: float = 60
    slices: int = 1
    elastic: bool = False
    elastic_wait: float = 120

    def __post_init__(self):
        for name, minimum in MINIMA.items():
            seconds = getattr(self, name)
            require(seconds >= minimum, f"pod.{name}={seconds}; it must be at least {minimum} seconds")
        require(self.slices >= 1, f"pod.slices={self.slices}; it must be at least 1")
        require(
            not self.elastic or self.slices > 1,
            f"pod.elastic=true with pod.slices={self.slices}: give the number of slices, of which one may be lost",
        )

"""Which checkpoints of a run are kept: the newest, one of every period, and the best."""

from collections.abc import Sequence
from typing import Protocol

from orbax.checkpoint import v1 as ocp

from lumina_jax.config import Experiment

HELDOUT = "heldout"
"""The name under which a checkpoint keeps its held-out loss."""
policies = ocp.training.preservation_policies


class SavedStep(Protocol):
    """What Orbax knows of a checkpoint."""

    step: int


class FirstOfPeriod:
    """Keeps the first checkpoint at or after each multiple of ``period`` steps, for good; ``period`` at least 1."""

    def __init__(self, period: int):
        self._period = period

    def should_preserve(
        self, checkpoints: Sequence[SavedStep], *, context: policies.PreservationContext
    ) -> Sequence[bool]:
        """Whether each of ``checkpoints``, oldest first, is kept."""
        periods = [info.step // self._period for info in checkpoints]
        return [period > 0 and period not in periods[:number] for number, period in enumerate(periods)]


def preservation(cfg: Experiment) -> policies.PreservationPolicy:
    """The policy of ``cfg.keep``, ``cfg.keep_every`` and ``cfg.keep_best``: what one of them keeps is kept."""
    kept = [policies.LatestN(cfg.keep)]
    if cfg.keep_every:
        kept.append(FirstOfPeriod(cfg.keep_every))
    if cfg.keep_best:
        # Orbax keeps those of the highest number.
        best = policies.BestN(
            get_metric_fn=lambda metrics: -metrics[HELDOUT], n=cfg.keep_best, keep_checkpoints_without_metrics=False
        )
        kept.append(best)
    return policies.AnyPreservationPolicy(kept)

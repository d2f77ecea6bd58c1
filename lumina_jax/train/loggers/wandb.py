"""Weights & Biases: one run there for all starts of a run here. WANDB_MODE, WANDB_API_KEY ... are its own variables."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

STEP = "step"
"""The axis of all charts: W&B's own step only grows, but a run goes on from its last checkpoint."""


class WandbLogger:
    """The W&B run ``run_id`` of ``project``; its files are in ``folder``/wandb. The package is imported here alone."""

    def __init__(self, folder: Path, run_id: str, project: str, name: str, settings: Mapping[str, object]):
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            id=run_id,
            resume="allow",
            project=project,
            name=name,
            config=dict(settings),
            dir=str(folder),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric=STEP)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({STEP: step, **values})

    def image(self, step: int, name: str, image: Image.Image) -> None:
        self._run.log({STEP: step, name: self._wandb.Image(image)})

    def flush(self) -> None:
        """Nothing: a process of W&B writes on its own."""

    def close(self, error: BaseException | None = None) -> None:
        self._run.finish(exit_code=int(isinstance(error, Exception)))

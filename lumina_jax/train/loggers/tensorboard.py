"""TensorBoard's files in the folder of the run."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter


class TensorBoardLogger:
    """Writes into ``folder``; points behind ``start``, of an earlier run that went further, are no longer shown."""

    def __init__(self, folder: Path, start: int):
        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()

    def close(self, error: BaseException | None = None) -> None:
        self._writer.close()

"""The loggers of a run by the names in ``log.to``, all behind one; which packages they need, and their ids in the run's folder."""

import importlib.util
import json
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from PIL import Image

from lumina_jax.config import Experiment, to_dict
from lumina_jax.errors import MissingPackageError
from lumina_jax.run_config import LOGGERS, LogConfig
from lumina_jax.storage import atomic_write_text
from lumina_jax.train.loggers.logger import BackgroundLogger, Logger
from lumina_jax.train.loggers.mlflow import DATABASE, MlflowLogger
from lumina_jax.train.loggers.tensorboard import TensorBoardLogger
from lumina_jax.train.loggers.wandb import WandbLogger
from lumina_jax.train.run_files import RunFiles

IDS = "loggers.json"
"""{the name of a logger: the id of this run there}, in the folder of the run."""


def check_packages(cfg: LogConfig) -> None:
    """Raises MissingPackageError for a logger whose package is not installed."""
    for name in cfg.to:
        spec = importlib.util.find_spec(name) if name in LOGGERS[1:] else None
        # Without an origin it is a folder of that name, as these services leave one where they ran.
        if name in LOGGERS[1:] and (spec is None or spec.origin is None):
            raise MissingPackageError(f"log.to={name} needs a package that is not installed; pip install {name}")


class Loggers:
    """All loggers of ``cfg.log.to`` for the run in ``files`` that starts behind step ``start``; ``warn`` says a line.

    A run that goes on does so in the same runs of W&B and MLflow; one from step 0 begins new ones.
    """

    def __init__(self, cfg: Experiment, files: RunFiles, start: int, warn: Callable[[str], object]):
        self._ids = LoggerIds(files.fetch(IDS), start)
        folder, settings = files.path(""), flat(to_dict(cfg))
        about = (cfg.log.project, cfg.name, settings)
        self._loggers: list[Logger] = []
        for name in cfg.log.to:
            if name == "tensorboard":
                self._loggers.append(TensorBoardLogger(files.path(name), start))
            elif name == "wandb":
                run_id = self._ids.get(name) or secrets.token_hex(4)
                self._ids.keep(name, run_id)
                self._add(name, lambda run_id=run_id: WandbLogger(folder, run_id, *about), warn)
            else:
                files.fetch(DATABASE)
                self._add(name, partial(self._open_mlflow, folder, about), warn)

    def _add(self, name: str, open: Callable[[], Logger], warn: Callable[[str], object]) -> None:
        self._loggers.append(BackgroundLogger(name, open, warn))

    def _open_mlflow(self, folder: Path, about: tuple[str, str, Mapping[str, object]]) -> MlflowLogger:
        # The id is asked for at each attempt: one that failed after it began a run goes on in it.
        return MlflowLogger(folder, self._ids.get("mlflow"), *about, self._keep_mlflow)

    def _keep_mlflow(self, run_id: str) -> None:
        self._ids.keep("mlflow", run_id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for logger in self._loggers:
            logger.scalars(step, values)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        for logger in self._loggers:
            logger.image(step, name, image)

    def flush(self) -> None:
        for logger in self._loggers:
            logger.flush()

    def close(self, error: BaseException | None = None) -> None:
        with ExitStack() as every:
            for logger in reversed(self._loggers):
                every.callback(logger.close, error)


class LoggerIds:
    """The ids in ``file``, where the run goes on: none counts for a run from step 0."""

    def __init__(self, file: Path, start: int):
        self._file, self._ids, self._keeping = file, {}, threading.Lock()
        if start and file.is_file():
            with suppress(ValueError):  # a file that was cut short: new runs, as if there were none
                self._ids = json.loads(file.read_text())

    def get(self, name: str) -> str:
        """The id of this run at a logger, or ""."""
        return str(self._ids.get(name, "")) if isinstance(self._ids, dict) else ""

    def keep(self, name: str, run_id: str) -> None:
        """Writes it down; loggers in threads of their own do so too."""
        with self._keeping:
            self._ids = (self._ids if isinstance(self._ids, dict) else {}) | {name: run_id}
            atomic_write_text(self._file, json.dumps(self._ids) + "\n")


def flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested values -> {dotted name: value}."""
    found: dict[str, object] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found

"""MLflow: one run there for all starts of a run here, on MLFLOW_TRACKING_URI, else in a database in the folder of the run."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

URI = "MLFLOW_TRACKING_URI"
DATABASE, PICTURES = "mlflow.db", "mlflow_pictures"
LARGEST_VALUE, MOST_SETTINGS = 500, 100
"""Letters of a setting, and settings in a request, that every server takes."""


class MlflowLogger:
    """The MLflow run ``run_id``, or a new one for "", which ``keep_id`` is told. The package is imported here alone."""

    def __init__(self, folder: Path, run_id: str, project: str, name: str, settings: Mapping[str, object], keep_id):
        import mlflow
        from mlflow.entities import Metric, Param

        self._metric = Metric
        address = os.environ.get(URI) or f"sqlite:///{folder.absolute() / DATABASE}"
        self._client = mlflow.MlflowClient(address)
        if run_id:
            self._id = run_id
            self._client.update_run(run_id, status="RUNNING")
            return
        pictures = None if os.environ.get(URI) else (folder.absolute() / PICTURES).as_uri()
        found = self._client.get_experiment_by_name(project)
        experiment = found.experiment_id if found else self._client.create_experiment(project, pictures)
        self._id = self._client.create_run(experiment, run_name=name).info.run_id
        keep_id(self._id)
        params = [Param(key, str(value)[:LARGEST_VALUE]) for key, value in settings.items()]
        for first in range(0, len(params), MOST_SETTINGS):
            self._client.log_batch(self._id, params=params[first : first + MOST_SETTINGS])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [self._metric(name, value, now, step) for name, value in values.items()])

    def image(self, step: int, name: str, image: Image.Image) -> None:
        self._client.log_image(self._id, image, key=name, step=step)

    def flush(self) -> None:
        """Nothing: each call is written."""

    def close(self, error: BaseException | None = None) -> None:
        if error is None or isinstance(error, Exception):
            self._client.set_terminated(self._id, "FAILED" if error else "FINISHED")
        else:
            self._client.set_terminated(self._id, "KILLED")

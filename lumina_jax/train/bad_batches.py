"""The batch that ends a run is saved, with the names of its records, so that it can be looked at and left out."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import jax
import numpy as np

from lumina_jax.batch import Batch
from lumina_jax.config import Experiment
from lumina_jax.history import BatchSpan, batch_span
from lumina_jax.storage import StorageFolder
from lumina_jax.train.checkpoint import Saver
from lumina_jax.train.guards import BadStepError

FOLDER = "bad-batches"
NAMED = 4
"""Records that the message names; a file has all."""


class RecentRows(Protocol):
    """What still holds the rows of this process of the last steps, by step."""

    recent: Mapping[int, Batch]


class BadBatches:
    """Saves the batches of steps that end the run of ``cfg`` into ``cfg.out``/bad-batches/<step>.

    ``record_names`` names the records of a span of batches (None: nobody can).
    """

    def __init__(self, cfg: Experiment, saver: Saver, record_names: Callable[[BatchSpan], Sequence[str]] | None):
        self._cfg, self._saver, self._record_names = cfg, saver, record_names

    @contextmanager
    def saved(self, rows: RecentRows) -> Iterator[None]:
        """A with-block whose BadStepError leaves with the names of the records, and where they are, added to its message."""
        try:
            yield
        except BadStepError as error:
            raise BadStepError(error.step, f"{error}; {self._save(error.step, rows)}") from error

    def _save(self, step: int, rows: RecentRows) -> str:
        """Saves rows and names of ``step``; says in words which records they are, and where."""
        folder = StorageFolder(f"{self._cfg.out}/{FOLDER}/{step}")
        span = batch_span(step - 1, step, self._cfg.data, self._saver.folders, self._saver.history)
        if (batch := rows.recent.get(step)) is not None:
            arrays = {name: np.asarray(array) for name, array in batch._asdict().items()}
            folder.write(f"rows-{jax.process_index()}.npz", lambda path: _write_arrays(path, arrays))
        names = list(self._record_names(span)) if self._record_names else []
        if jax.process_index() == 0:
            text = json.dumps({"step": step, "batch": span.start, "records": names}, indent=1) + "\n"
            folder.write_text("records.json", text)
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        which = (
            f"its batch {span.start} holds {', '.join(names[:NAMED])}{more}" if names else f"its batch is {span.start}"
        )
        return f"{which}; it is saved in {folder}"


def _write_arrays(path, arrays: Mapping[str, np.ndarray]) -> None:
    with open(path, "wb") as file:  # given a path, NumPy would add a suffix to it
        np.savez(file, **arrays)

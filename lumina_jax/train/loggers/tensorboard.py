"""TensorBoard's files in the folder of the run."""

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from lumina_jax.storage import storage_errors

FLUSH_SECONDS = 60.0
"""TensorBoard sees the points at most so much later."""
VERSION = "brain.Event:2"


class TensorBoardLogger:
    """Writes into ``folder``; points behind ``start``, of an earlier run that went further, are no longer shown.

    Written by the caller, not by tensorboardX's thread: when a disk refuses, that thread ends, and whoever logs waits for ever.
    Raises StorageError.
    """

    def __init__(self, folder: Path, start: int):
        self._folder, self._flushed = folder, time.monotonic()
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(folder / "events"))
        self._write(Event(step=start + 1, file_version=VERSION))
        self._write(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write(Event(step=step, summary=summary.scalar(name, value)))

    def image(self, step: int, name: str, image: Image.Image) -> None:
        pixels = np.asarray(image.convert("RGB"))
        self._write(Event(step=step, summary=summary.image(name, pixels, dataformats="HWC")))

    def flush(self) -> None:
        with storage_errors(self._folder):
            self._events.flush()
        self._flushed = time.monotonic()

    def close(self, error: BaseException | None = None) -> None:
        # What a run ends with is not replaced by the same refusal of the same disk.
        with suppress(OSError) if error else storage_errors(self._folder):
            self._events.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with storage_errors(self._folder):
            self._events.write_event(event)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

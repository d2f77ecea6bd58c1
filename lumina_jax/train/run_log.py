"""history.jsonl in the folder of a run: who started it when and from which step, what changed, and what the guards did."""

import json
from contextlib import suppress

import jax

from lumina_jax.history import signature, utc_now
from lumina_jax.storage import StorageFolder

FILE = "history.jsonl"


class RunLog:
    """Adds lines to history.jsonl in ``folder``, in process 0. Lines are only ever added, also by runs that go on."""

    def __init__(self, folder: str):
        self._writes = jax.process_index() == 0
        self._folder = StorageFolder(folder)
        self._text = ""
        if self._writes and self._folder.exists(FILE):
            self._text = self._folder.read_bytes(FILE).decode(errors="replace")

    def add(self, event: str, step: int, **values: object) -> None:
        """Adds a line {"event", "step", "who", "when", ...}."""
        if self._writes:
            line = {"event": event, "step": step, "who": signature(), "when": utc_now(), **values}
            self._text += json.dumps(line) + "\n"
            self._folder.write_text(FILE, self._text)


def read_history(folder: str) -> list[dict]:
    """The lines of a run's history.jsonl; empty where there is none."""
    storage, lines = StorageFolder(folder), []
    for text in storage.read_bytes(FILE).splitlines() if storage.exists(FILE) else ():
        with suppress(ValueError):
            lines.append(json.loads(text))
    return lines

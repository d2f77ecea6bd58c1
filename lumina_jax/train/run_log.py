"""history.jsonl in the folder of a run: who started it when and from which step, what changed, and what the guards did."""

import hashlib
import json
from contextlib import suppress

import jax

from lumina_jax.cluster.agreement import text_from_first
from lumina_jax.config import Experiment
from lumina_jax.history import Change, Folders, History, signature, utc_now
from lumina_jax.storage import StorageFolder
from lumina_jax.train.continuing import result_fields

FILE = "history.jsonl"
WENT_BACK = "went back"


class RunLog:
    """Adds lines to history.jsonl in ``folder``, in process 0. Lines are only ever added, also by runs that go on."""

    def __init__(self, folder: str):
        self._writes = jax.process_index() == 0
        self._folder = StorageFolder(folder)

    def add(self, event: str, step: int, **values: object) -> None:
        """Adds a line {"event", "step", "who", "when", ...}."""
        if self._writes:
            line = {"event": event, "step": step, "who": signature(), "when": utc_now(), **values}
            # Read anew: another log of the same run may have added lines.
            text = self._folder.read_bytes(FILE).decode(errors="replace") if self._folder.exists(FILE) else ""
            self._folder.write_text(FILE, text + json.dumps(line) + "\n")

    def add_return(self, change: Change, order: str) -> None:
        """Adds that the run went back to ``change.step``, for a start that finds no checkpoint behind it (:meth:`returns`)."""
        values = dict(why=change.why, skipped=change.skipped, order=order, who=change.who, when=change.when)
        self.add(WENT_BACK, change.step, **values)

    def returns(self, step: int, order: str) -> History:
        """What was left out, behind ``step``, of the data of ``order`` (:func:`order_of`); the same in all processes."""
        found = text_from_first(lambda: json.dumps(self._returns(step, order)))
        return tuple(Change(before={}, after={}, **fields) for fields in json.loads(found))

    def _returns(self, step: int, order: str) -> list[dict]:
        lines = (line for line in read_history(str(self._folder)) if line.get("event") == WENT_BACK)
        names = ("step", "why", "skipped", "who", "when")
        return [
            {name: line[name] for name in names} for line in lines if (line["step"], line.get("order")) == (step, order)
        ]


def order_of(cfg: Experiment, folders: Folders) -> str:
    """12 hex digits that change with the order of the batches of ``cfg`` over token folders with these fingerprints."""
    fields = {name: value for name, value in result_fields(cfg).items() if name.startswith("data.") or name == "seed"}
    return hashlib.sha256(json.dumps([fields, folders], sort_keys=True, default=str).encode()).hexdigest()[:12]


def read_history(folder: str) -> list[dict]:
    """The lines of a run's history.jsonl; empty where there is none."""
    storage, lines = StorageFolder(folder), []
    for text in storage.read_bytes(FILE).splitlines() if storage.exists(FILE) else ():
        with suppress(ValueError):
            lines.append(json.loads(text))
    return lines

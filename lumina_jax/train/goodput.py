"""Where the time of a run goes: training, or compiling, restoring, saving, waiting for data, measuring, and lost to restarts.

goodput.jsonl gets a line at each save and at the end, with the seconds since the first start of the run. A run that goes on from a
checkpoint goes on from its line there: all time since, for steps that are repeated and for nothing, was lost. metrics.jsonl has no
times, so that it is the same after any interruption.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lumina_jax.progress import duration
from lumina_jax.storage import StorageFolder

FILE = "goodput.jsonl"
KINDS = ("compiling", "restoring", "saving", "waiting for data", "evaluating", "lost to restarts")
"""What is no training."""
FIELDS = {"step", "time", "restarts", "seconds"}


class Goodput:
    """Seconds of a run by kind, as this process sees them, going on from the checkpoint of ``step``.

    ``lines`` are those of goodput.jsonl so far, of which it keeps those up to ``step``; ``restoring`` seconds have just been spent
    on restoring. ``clock`` reads seconds since 1970 (default: a :func:`steady_clock`).
    """

    def __init__(self, lines: list[dict], step: int, restoring: float = 0.0, clock: Callable[[], float] | None = None):
        self._clock = clock or steady_clock()
        self._counted_until = self._clock()
        self.seconds = dict.fromkeys(("training", *KINDS), 0.0)
        self.restarts = 0
        last = max((number for number, line in enumerate(lines) if line["step"] == step), default=-1)
        self.lines = lines[: last + 1]
        if self.lines:
            before = self.lines[-1]
            self.seconds |= before["seconds"]
            self.restarts = before["restarts"]
            if not before.get("ended"):
                self.restarts += 1
                self.seconds["lost to restarts"] += max(self._counted_until - restoring - before["time"], 0.0)
        self.seconds["restoring"] += restoring

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """The time of the with-block is of ``kind``."""
        start = self._clock()
        try:
            yield
        finally:
            self.add(kind, self._clock() - start)

    def add(self, kind: str, seconds: float) -> None:
        """``seconds`` of the time that has just passed were of ``kind``."""
        self.seconds[kind] += seconds
        self._counted_until += seconds

    def mark(self, step: int, ended: bool = False) -> None:
        """Adds the line of ``step``; all time that was counted as nothing else was training. Behind the last step of a run that
        ``ended`` no time is lost until it is given more."""
        now = self._clock()
        self.seconds["training"] += max(now - self._counted_until, 0.0)
        self._counted_until = now
        rounded = {kind: round(seconds, 3) for kind, seconds in self.seconds.items()}
        line = {"step": step, "time": round(now, 3), "restarts": self.restarts, "seconds": rounded}
        self.lines.append(line | ({"ended": True} if ended else {}))

    def write(self, folder: str) -> None:
        """Writes all lines to goodput.jsonl in ``folder``."""
        StorageFolder(folder).write_text(FILE, "".join(json.dumps(line) + "\n" for line in self.lines))

    def in_words(self) -> str:
        """The share of training, then the time of all that is not."""
        total = max(sum(self.seconds.values()), 1e-9)
        rest = ", ".join(f"{kind} {duration(self.seconds[kind])}" for kind in KINDS)
        share = self.seconds["training"] / total
        return f"goodput {share:.1%}: of {duration(total)}, {rest} ({self.restarts} restarts)"


def steady_clock() -> Callable[[], float]:
    """A clock that reads the seconds since 1970 once and then counts: a machine whose clock is set loses or wins no time."""
    begin = time.time() - time.monotonic()
    return lambda: begin + time.monotonic()


def read_goodput(folder: str) -> list[dict]:
    """The lines of a run's goodput.jsonl; those that no run wrote are passed over."""
    storage, lines = StorageFolder(folder), []
    for text in storage.read_bytes(FILE).splitlines() if storage.exists(FILE) else ():
        with suppress(ValueError, TypeError):
            line = json.loads(text)
            lines += [line] if set(line) >= FIELDS else []
    return lines

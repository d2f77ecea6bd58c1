"""Progress of a long job: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0


class _Count(ProgressColumn):
    def __init__(self, unit: str, size: int):
        super().__init__()
        self._unit, self._size = unit, size

    def render(self, task: Task) -> Text:
        done, total, rate = (n / self._size for n in (task.completed, task.total, task.speed or 0))
        return Text(f"{done:,.0f} of {total:,.0f} {self._unit}, {rate:,.0f}/s")


class Meter:
    """Counts to ``total`` on standard error, with the rate and the time left; use it as a context.

    What is counted is told in a ``unit`` of ``size`` each: records one by one, or bytes as ("MB", 10**6).
    """

    def __init__(self, title: str, total: int, shown: bool = True, unit: str = "records", size: int = 1):
        self._title, self._total, self._shown, self._unit, self._size = title, total, shown, unit, size
        console = Console(stderr=True)
        self._plain = shown and not console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), _Count(unit, size), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not shown or self._plain)
        self._task = self._bar.add_task(title, total=total)
        self._done = self._counted = 0
        self._began = self._told = time.monotonic()

    def __enter__(self) -> "Meter":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Prints a line beside the progress."""
        if self._shown:
            self._bar.console.print(line, highlight=False, soft_wrap=True)

    def skip(self, count: int) -> None:
        """``count`` records were done by an earlier run: they say nothing about the rate."""
        self._done += count
        self._bar.update(self._task, completed=self._done)

    def advance(self, count: int) -> None:
        """``count`` more records are done."""
        self._done, self._counted = self._done + count, self._counted + count
        self._bar.advance(self._task, count)
        now = time.monotonic()
        if self._plain and (self._done == self._total or now - self._told >= SECONDS_BETWEEN_LINES):
            self._told = now
            rate = self._counted / max(now - self._began, 1e-9)
            left = (self._total - self._done) / max(rate, 1e-9)
            done, total, speed = (f"{n / self._size:,.0f}" for n in (self._done, self._total, rate))
            self.say(f"{self._title}: {done} of {total} {self._unit}, {speed}/s, {timedelta(seconds=round(left))} left")

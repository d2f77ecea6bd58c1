"""Progress of a long job: a bar on a terminal, a plain line every few seconds elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f}/s")


class Meter:
    """Counts ``total`` records on standard error, with their rate and the time left; use it as a context."""

    def __init__(self, title: str, total: int, shown: bool = True):
        self._title, self._total, self._shown = title, total, shown
        console = Console(stderr=True)
        self._plain = shown and not console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
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
            left = (self._total - self._done) / rate
            self.say(f"{self._title}: {self._done:,} of {self._total:,} records, {rate:,.0f}/s, {left:,.0f} s left")

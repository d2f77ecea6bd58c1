"""Progress of a long job: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class ProgressDisplay:
    """Counts to ``total`` with the rate and the time left, on stderr or stdout; a context manager.

    ``unit`` names what is counted, and ``unit_size`` says how much of it one unit is: ("records", 1) or ("MB", 10**6).
    """

    stderr = True
    seconds_between_lines = 5.0
    line = "{title}: {done:,.0f} of {total:,.0f} {unit}, {rate}/s, {time_left} left"
    """Shown beside the bar, or alone. Further fields: seconds_left, and the ``text`` of the last :meth:`advance`."""

    def __init__(self, title: str, total: int, show: bool = True, unit: str = "records", unit_size: int = 1):
        self._title, self._total, self._show, self._unit, self._unit_size = title, total, show, unit, unit_size
        console = Console(stderr=self.stderr)
        self._plain = show and not console.is_terminal
        columns = (BarColumn(), TextColumn("{task.description}", markup=False))
        self._bar = Progress(*columns, console=console, disable=not show or self._plain)
        self._task = self._bar.add_task(title, total=total)
        self._skipped = self._counted = 0
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def done(self) -> int:
        """How much is done, what was skipped included."""
        return self._skipped + self._counted

    def print_line(self, line: str) -> None:
        """Prints a line above the progress."""
        if self._show:
            self._bar.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def skip(self, count: int) -> None:
        """An earlier run did ``count``: they are done but say nothing about the rate."""
        self._skipped += count

    def advance(self, count: int, text: str = "") -> None:
        """``count`` more are done; ``text`` is shown beside them."""
        self._counted += count
        now = time.monotonic()
        line = self._format(max(now - self._start, 1e-9), text)
        self._bar.update(self._task, completed=self.done, description=line)
        ended = count > 0 and self.done == self._total
        if self._plain and (ended or now - self._last_line >= self.seconds_between_lines):
            self._last_line = now
            self.print_line(line)

    def _format(self, elapsed: float, text: str) -> str:
        rate = self._counted / elapsed
        left = (self._total - self.done) / max(rate, 1e-9)
        done, total, rate = (count / self._unit_size for count in (self.done, self._total, rate))
        rate = f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.2g}"
        fields = dict(title=self._title, done=done, total=total, unit=self._unit, rate=rate, text=text)
        return self.line.format(**fields, seconds_left=left, time_left=timedelta(seconds=round(left)))

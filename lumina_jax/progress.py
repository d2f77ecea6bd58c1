"""Progress of a long job: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

PLAIN_LINE = "{title}: {done:,.0f} of {total:,.0f} {unit}, {rate}/s, {time_left} left"
SECONDS_BETWEEN_LINES = 5.0


class _CountAndRate(ProgressColumn):
    def __init__(self, unit: str, unit_size: int):
        super().__init__()
        self._unit, self._unit_size = unit, unit_size

    def render(self, task: Task) -> Text:
        done, total, rate = (count / self._unit_size for count in (task.completed, task.total, task.speed or 0))
        return Text(f"{done:,.0f} of {total:,.0f} {self._unit}, {_rate(rate)}/s")


class ProgressDisplay:
    """Counts to ``total`` with the rate and the time left, on stderr or stdout; a context manager.

    ``unit`` names what is counted, and ``unit_size`` says how much of it one unit is: ("records", 1) or ("MB", 10**6).
    ``plain_line`` is the format of the line printed where there is no terminal, at most every ``seconds`` and at the end; its
    fields are title, done, total, unit, rate, time_left (h:mm:ss), seconds_left and the ``text`` of the last :meth:`advance`.
    """

    def __init__(
        self,
        title: str,
        total: int,
        show: bool = True,
        unit: str = "records",
        unit_size: int = 1,
        plain_line: str = PLAIN_LINE,
        seconds: float = SECONDS_BETWEEN_LINES,
        stderr: bool = True,
    ):
        self._title, self._total, self._unit, self._unit_size = title, total, unit, unit_size
        self._show, self._plain_line, self._seconds = show, plain_line, seconds
        console = Console(stderr=stderr)
        self._plain = show and not console.is_terminal
        count = _CountAndRate(unit, unit_size)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            count,
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._bar = Progress(*columns, console=console, disable=not show or self._plain)
        self._task = self._bar.add_task(title, total=total, text="")
        self._skipped = self._counted = 0
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> "ProgressDisplay":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Shows the bar, where there is a terminal."""
        self._bar.start()

    def stop(self) -> None:
        """Leaves the bar as it is."""
        self._bar.stop()

    @property
    def done(self) -> int:
        """How much has been counted, what was skipped included."""
        return self._skipped + self._counted

    def print_line(self, line: str) -> None:
        """Prints a line above the progress."""
        if self._show:
            self._bar.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def skip(self, count: int) -> None:
        """An earlier run did ``count``: they are done but say nothing about the rate."""
        self._skipped += count
        self._bar.update(self._task, completed=self.done)

    def advance(self, count: int, text: str = "") -> None:
        """``count`` more are done; ``text`` is shown beside them."""
        self._counted += count
        self._bar.update(self._task, advance=count, text=text)
        now = time.monotonic()
        if self._plain and (self.done == self._total or now - self._last_line >= self._seconds):
            self._last_line = now
            self.print_line(self._format(max(now - self._start, 1e-9), text))

    def _format(self, elapsed: float, text: str) -> str:
        rate = max(self._counted, 1) / elapsed
        seconds_left = (self._total - self.done) / rate
        return self._plain_line.format(
            title=self._title,
            done=self.done / self._unit_size,
            total=self._total / self._unit_size,
            unit=self._unit,
            rate=_rate(rate / self._unit_size),
            time_left=timedelta(seconds=round(seconds_left)),
            seconds_left=seconds_left,
            text=text,
        )


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.2g}"

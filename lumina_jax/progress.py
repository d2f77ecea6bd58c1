"""Progress of a long job: a bar on a terminal, a plain line every few seconds elsewhere, and a word before each long wait."""

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from lumina_jax.errors import printable

RECENT_SECONDS = 30.0
"""The rate is that of so many last seconds, so that a compilation at the start does not count for ever."""
MIN_MARKS = 5
"""The rate is that of at least so many last steps, however long they took."""
SILENT_SECONDS = 1.0
"""A wait that ends earlier is not announced."""
MAX_SECONDS = 1000 * 86400
"""A longer duration is a guess that says nothing."""


@contextmanager
def waiting(what: str, seconds: float | None = None, show: bool = True) -> Iterator[None]:
    """Says on stderr what the process waits for, unless the with-block ends within SILENT_SECONDS.

    ``waiting("compiling", seconds=20)`` says "compiling, about 20 s". Without ``show`` it says nothing.
    """
    line = what if seconds is None else f"{what}, about {duration(seconds)}"
    timer = threading.Timer(SILENT_SECONDS, print_line, [line])
    timer.daemon = True
    if show:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def print_line(line: str, stderr: bool = True) -> None:
    """Prints a line on stderr or stdout, its control characters escaped.

    A stream that cannot be written is passed over: it is no reason to end a job of hours.
    """
    stream = sys.stderr if stderr else sys.stdout
    if stream is None:
        return
    try:
        print(_encodable(line, getattr(stream, "encoding", None)), file=stream, flush=True)
    except (OSError, ValueError):  # nobody reads it any more; ValueError: closed
        return


def duration(seconds: float) -> str:
    """Seconds in words, such as "45 s", "2 min 10 s", "3 h 5 min" or "12 days 4 h"; "unknown time" when nobody can know."""
    if not 0 <= seconds < MAX_SECONDS:
        return "unknown time"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} day{'s' * (days > 1)} {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


class ProgressDisplay:
    """Counts to ``total`` with the rate and the time left, on stderr or stdout; a context manager.

    ``unit`` names what is counted, and ``unit_size`` says how much of it one unit is: ("records", 1) or ("MB", 10**6). Rate and
    time left follow from the recent past. A stream that is closed, or that nobody reads any more, does not end the job.
    """

    stderr = True
    seconds_between_lines = 5.0
    line = "{title}: {done:,.0f} of {total:,.0f} {unit}, {rate}, {time_left} left"
    """Shown beside the bar, or alone. A further field is the ``text`` of the last :meth:`advance`."""

    def __init__(self, title: str, total: int, show: bool = True, unit: str = "records", unit_size: int = 1):
        self._title, self._total, self._show, self._unit, self._unit_size = title, total, show, unit, unit_size
        console = Console(stderr=self.stderr)
        self._plain = not _draws(console)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(None))
        self._bar = Progress(*columns, console=console, disable=not show or self._plain, expand=True)
        self._task = self._bar.add_task("", total=total)
        self._skipped = self._counted = 0
        self._printed: int | None = None
        self._start = self._last_line = time.monotonic()
        self._recent = _RecentRate()

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
        """Prints a line above the progress, its control characters escaped."""
        if self._show and self._plain:
            print_line(line, self.stderr)
        elif self._show:
            self._bar.console.print(
                _encodable(line, self._bar.console.encoding), highlight=False, markup=False, emoji=False, soft_wrap=True
            )

    def skip(self, count: int) -> None:
        """An earlier run did ``count``: they are done but say nothing about the rate."""
        self._skipped += count

    def advance(self, count: int, text: str = "") -> None:
        """``count`` more are done; ``text`` is shown beside them. More than the total may be done: then the total was a guess."""
        self._counted += count
        now, total = time.monotonic(), max(self._total, self.done)
        self._recent.add(now, self._counted)
        if not self._plain:
            line = _encodable(self._fitting(now, text, self._bar.console.width - 1), self._bar.console.encoding)
            self._bar.update(self._task, completed=self.done, total=total, description=line)
        elif self.done != self._printed and self._due(now):
            self._last_line, self._printed = now, self.done
            self.print_line(self._format(now, text, self._title))

    def _due(self, now: float) -> bool:
        return self.done == self._total or now - self._last_line >= self.seconds_between_lines

    def _fitting(self, now: float, text: str, width: int) -> str:
        """The line, with as much of its title as ``width`` letters allow: the numbers matter more."""
        excess = len(line := self._format(now, text, self._title)) - width
        return line if excess <= 0 else self._format(now, text, f"{self._title[: -excess - 1]}…")

    def _format(self, now: float, text: str, title: str) -> str:
        total, elapsed = max(self._total, self.done), now - self._start
        if self.done >= self._total:
            rate, left = (self._counted / elapsed if elapsed else math.nan), 0.0
        else:
            rate = self._recent.value()
            left = (total - self.done) / rate if rate else math.nan
        done, total, rate = (count / self._unit_size for count in (self.done, total, rate))
        fields = dict(title=title, done=done, total=total, unit=self._unit, rate=_rate(rate), text=text)
        return self.line.format(**fields, time_left=duration(left))


class _RecentRate:
    """How much is done a second, in the last RECENT_SECONDS or the last MIN_MARKS steps, whichever is longer.

    What comes before the first step, such as a compilation, does not count.
    """

    def __init__(self):
        self._marks: deque[tuple[float, int]] = deque()
        self._last = (0.0, 0)

    def add(self, now: float, counted: int) -> None:
        """``counted`` are done at the time ``now``."""
        self._last = (now, counted)
        if not self._marks or now - self._marks[-1][0] >= RECENT_SECONDS / 30:
            self._marks.append(self._last)
        while len(self._marks) > MIN_MARKS and now - self._marks[1][0] >= RECENT_SECONDS:
            self._marks.popleft()

    def value(self) -> float:
        """NaN before the second step."""
        (begin, before), (now, counted) = self._marks[0], self._last
        return (counted - before) / (now - begin) if now > begin else math.nan


def _draws(console: Console) -> bool:
    """Whether the stream is a terminal on which a bar can be drawn, whatever the environment says of colours."""
    try:
        return console.file.isatty() and console.is_terminal and not console.is_dumb_terminal
    except ValueError:  # closed
        return False


def _rate(per_second: float) -> str:
    """A rate in the unit of time that makes it readable."""
    if math.isnan(per_second):
        return "unknown rate"
    for seconds, unit in ((1, "s"), (60, "min")):
        if per_second * seconds >= 0.1 or per_second == 0:
            return f"{_figures(per_second * seconds)}/{unit}"
    return f"{_figures(per_second * 3600)}/h"


def _figures(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _encodable(line: str, encoding: str | None) -> str:
    """A line without control characters, and with escapes for the letters that ``encoding`` lacks."""
    encoding = encoding or "utf-8"
    return printable(line).encode(encoding, "backslashreplace").decode(encoding)
